"""The model of large clusters' start-up: bounds that hold whatever the constants are."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.bench.simulate import RESOURCES
from orchestrator.bench.simulator.start_model import Constants, Scale, simulate

some = st.floats(0.0, 0.5)
constants = st.builds(Constants, some, some, some, some, some, some, some, some, some)
scales = st.builds(
    Scale, st.integers(1, 6), st.integers(1, 20), st.floats(0.1, 4.0), st.integers(1, 4), cold=st.booleans(),
    boot_s=some,
)  # fmt: skip


@given(constants, scales)
def test_a_start_takes_at_least_its_own_steps_and_at_most_all_of_them_in_a_row(take: Constants, scale: Scale) -> None:
    outcome = simulate(take, scale)
    assert len(outcome.ready) == scale.replicas
    per_mib = take.publish_s + take.transfer_s + take.install_s
    each = take.place_s + take.process_s + 2 * take.ask_s + take.link_s + take.load_s + per_mib * scale.artifact_mib
    least = scale.boot_s + take.place_s + take.process_s + take.ask_s + min(take.load_s, take.compile_s)
    assert least - 1e-6 <= outcome.last_s <= scale.boot_s + take.compile_s + each * (scale.replicas + 1) + 1e-6
    assert outcome.median_s <= outcome.last_s


@given(constants, scales, st.sampled_from(RESOURCES))
def test_what_costs_nothing_delays_nobody_when_alone(take: Constants, scale: Scale, resource: str) -> None:
    alone = replace(scale, nodes=1, replicas=1)
    assert simulate(take, replace(alone, free=frozenset({resource}))).last_s <= simulate(take, alone).last_s + 1e-9


MEASURED = Constants(0.001, 0.5, 0.001, 0.01, 0.002, 0.01, 0.005, 20.0, 3.0)


def test_replicas_that_wait_keep_a_leader_from_publishing_unless_there_are_calls_for_all() -> None:
    scale = Scale(100, 1100, 1.0, cold=True, calls=1000)
    assert len(simulate(MEASURED, replace(scale, calls=None)).ready) == 1100
    with pytest.raises(ValueError, match="wait for ever"):
        simulate(MEASURED, scale)
    assert len(simulate(MEASURED, replace(scale, replicas=900)).ready) == 900


def test_in_turns_large_graphs_spread_like_a_tree() -> None:
    scale = Scale(256, 256, 100.0)  # 0.2 s for each transfer
    turns, none = simulate(MEASURED, scale), simulate(MEASURED, replace(scale, turns=False))
    assert none.last_s > 250 * 0.2  # one after the other
    assert turns.last_s < none.last_s - 40


def test_only_a_nodes_first_replica_fetches() -> None:
    few, many = (simulate(MEASURED, Scale(4, n, 100.0)) for n in (4, 40))
    assert many.last_s < few.last_s + 2.0


def test_the_same_seed_gives_the_same_start() -> None:
    assert simulate(MEASURED, Scale(50, 200, 10.0)).ready == simulate(MEASURED, Scale(50, 200, 10.0)).ready
