"""Which nodes are made ready ahead of the autoscaler."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.serve.warm_ahead import candidates, missing

NAMES = st.lists(st.sampled_from("abcdefgh"), unique=True)
KEYS = st.lists(st.sampled_from(["k1", "k2", "k3"]), unique=True)


@given(
    nodes=NAMES,
    keys=KEYS,
    ready=st.dictionaries(st.sampled_from("abcdefgh"), st.sets(st.just("k1"))),
    limit=st.integers(0, 8),
)
def test_all_get_everything_within_the_limit_and_once(
    nodes: list[str], keys: list[str], ready: dict[str, set[str]], limit: int
) -> None:
    had = {node: set(done) for node, done in ready.items() if node in nodes}
    state = {node: set(done) for node, done in had.items()}
    for node, new in missing(nodes, keys, state, limit).items():
        assert not state.get(node, set()) & set(new)
        state.setdefault(node, set()).update(new)
    assert len(state) <= max(limit, len(had))
    assert sum(set(keys) <= done for done in state.values()) >= min(limit, len(nodes))
    assert missing(nodes, keys, state, limit) == {}


def test_only_living_nodes_that_are_large_enough() -> None:
    nodes = [
        {"NodeID": "small", "Alive": True, "Resources": {"CPU": 1.0}},
        {"NodeID": "dead", "Alive": False, "Resources": {"GPU": 4.0}},
        {"NodeID": "good", "Alive": True, "Resources": {"CPU": 8.0, "GPU": 4.0}},
    ]
    assert candidates(nodes, {"GPU": 1.0}) == ["good"]
    assert candidates(nodes, {"CPU": 1.0}) == ["small", "good"]
