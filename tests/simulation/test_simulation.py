"""The graph cache in a simulated world: thousands of interleavings and faults, each by its seed.

A failure names its seed: `SIMULATION_SEED=4711 pytest tests/simulation -k has_to_be` plays that one alone.
"""

from __future__ import annotations

import logging
import os
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.simulation.faults import FAULTS
from tests.simulation.scenario import Graphs, play

SEEDS = 1000
MANY = 100_000
PARTS = 20  # a part is a test, so that workers share them


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Graphs:
    return Graphs(tmp_path_factory.mktemp("graphs"))


@pytest.fixture(autouse=True)
def silent() -> None:
    logging.getLogger("orchestrator.registry").setLevel(logging.CRITICAL)


def test_what_has_to_be_true_is_true(graphs: Graphs) -> None:
    seed = os.environ.get("SIMULATION_SEED")
    for number in range(SEEDS) if seed is None else [int(seed)]:
        play(number, graphs)


@pytest.mark.parametrize("part", range(PARTS))
def test_and_in_many_more_runs(part: int, graphs: Graphs) -> None:
    for number in range(SEEDS + part, SEEDS + MANY, PARTS):
        play(number, graphs)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(fault: str, graphs: Graphs) -> None:
    with ExitStack() as stack:
        for patch in FAULTS[fault]():
            stack.enter_context(patch)
        with pytest.raises(AssertionError, match=r"^seed \d+: "):
            for number in range(SEEDS):
                play(number, graphs)


def test_a_seed_gives_the_same_run_again(graphs: Graphs) -> None:
    """Down to the last step: otherwise a failure could not be looked at."""
    assert [play(number, graphs) for number in range(50)] == [play(number, graphs) for number in range(50)]
