"""Which nodes are made ready ahead of the autoscaler."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.config import sources
from orchestrator.serve import warm_ahead
from orchestrator.serve.status_board import Board
from orchestrator.serve.warm_ahead import Ahead, candidates, missing
from orchestrator.weights.listing import File, Listing
from orchestrator.weights.settings import Bounds, Weights

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


class Cluster:
    """One model with one of two replicas, on one node of two; notes what nodes are made ready with."""

    def __init__(self) -> None:
        self.board, self.made, self.models, self.keys = Board(), [], [], ["k1"]
        self.rank: Any = SimpleNamespace(rank=0)

    def make_ready(
        self, nodes: list[str], cache: Any, module: str, keys: list[str], *, weights: list[Weights], workers: list[str]
    ) -> None:
        self.made += [(node, keys, workers) for node in nodes]
        self.models += [(node, [model.listing.model for model in weights]) for node in nodes]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    found = Cluster()
    nodes = [{"NodeID": name, "Alive": True, "Resources": {"CPU": 8.0}} for name in ("a", "b")]
    model = SimpleNamespace(replica_states={"RUNNING": 1})
    board = SimpleNamespace(workers=SimpleNamespace(remote=found.board.workers))
    monkeypatch.setattr(warm_ahead.controller, "deployments", lambda name: {"model:m": model})
    monkeypatch.setattr(warm_ahead, "cache_settings", lambda app, share: None)
    monkeypatch.setattr(warm_ahead, "_newest", lambda cache: list(found.keys))
    monkeypatch.setattr(warm_ahead.Board, "connect", lambda namespace: board)
    monkeypatch.setattr(warm_ahead.node_warmer, "make_ready", found.make_ready)
    monkeypatch.setattr(warm_ahead.ray, "nodes", lambda: nodes)
    monkeypatch.setattr(warm_ahead.serve, "get_replica_context", lambda: SimpleNamespace(rank=found.rank))
    monkeypatch.setattr(warm_ahead.ray, "get", lambda value, timeout: value)
    return found


def test_a_worker_waits_where_a_replica_may_come_once_one_has_told_its_environment(cluster: Cluster) -> None:
    app = sources.composed(["model=tiny_llama"])
    ahead = Ahead(app, 2, "module")
    ahead.step()
    assert cluster.made == [("a", ["k1"], []), ("b", ["k1"], [])]
    cluster.board.tell_worker("another application", "its environment")
    for _ in range(2):  # a replica tells every time
        cluster.board.tell_worker(app.serve.name, "{}")
        ahead.step()
    assert cluster.made[2:] == [("a", [], ["{}"]), ("b", [], ["{}"])]


def test_no_worker_waits_where_none_is_wanted(cluster: Cluster) -> None:
    app = sources.composed(["model=tiny_llama", "cold_start.prestart_worker=false"])
    cluster.board.tell_worker(app.serve.name, "{}")
    Ahead(app, 2, "module").step()
    assert cluster.made == [("a", ["k1"], []), ("b", ["k1"], [])]


@pytest.mark.parametrize("rank", [None, SimpleNamespace(rank=1)], ids=["not yet known", "second"])
def test_of_several_fronts_one_makes_nodes_ready(cluster: Cluster, rank: Any) -> None:
    cluster.rank = rank
    Ahead(sources.composed(["model=tiny_llama"]), 2, "module").step()
    assert cluster.made == []


def travelling(name: str, size: int) -> Weights:
    listing = Listing(name, f"/{name}", (File("model.safetensors", size, 1),), 10, 10)
    return Weights(listing, Bounds("/models", 100, 1, 1, 1.0), "/key", "namespace")


def test_models_travel_ahead_once_and_as_many_as_a_node_keeps(cluster: Cluster) -> None:
    models = [travelling("a", 60), travelling("too much beside it", 50), travelling("c", 40)]
    ahead = Ahead(sources.composed(["model=tiny_llama"]), 2, "module", models)
    ahead.step()
    assert cluster.models == [("a", ["a", "c"]), ("b", ["a", "c"])]
    cluster.keys.append("k2")
    ahead.step()
    assert cluster.made[2:] == [("a", ["k2"], []), ("b", ["k2"], [])]
    assert cluster.models[2:] == [("a", []), ("b", [])]


def test_old_environments_are_forgotten() -> None:
    board = Board()
    for name in "abcdea":
        board.tell_worker("app", name)
    assert board.workers("app") == ["c", "d", "e", "a"]
