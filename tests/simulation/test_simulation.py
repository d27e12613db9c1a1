"""The graph cache in a simulated world: thousands of interleavings and faults, each by its seed.

A failure names its seed: `SIMULATION_SEED=4711 pytest tests/simulation -k has_to_be` plays that one alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

import pytest

from tests.simulation.scenario import Graphs, play

SEEDS = 1000
MANY = 100_000
PARTS = 20  # a part is a test, so that workers share them


def play_all(seeds: Iterable[int], graphs: Graphs) -> None:
    for seed in seeds:
        play(seed, graphs)


def test_what_has_to_be_true_is_true(graphs: Graphs) -> None:
    seed = os.environ.get("SIMULATION_SEED")
    play_all(range(SEEDS) if seed is None else [int(seed)], graphs)


@pytest.mark.parametrize("part", range(PARTS))
def test_and_in_many_more_runs(part: int, graphs: Graphs) -> None:
    play_all(range(SEEDS + part, SEEDS + MANY, PARTS), graphs)


def test_a_seed_gives_the_same_run_again(graphs: Graphs) -> None:
    """Down to the last step: otherwise a failure could not be looked at."""
    assert [play(number, graphs) for number in range(50)] == [play(number, graphs) for number in range(50)]
