"""Models that we make are made on every other node that lives, and on no other."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from ray.exceptions import NodeDiedError, RayTaskError

from orchestrator.cluster.shape import ClusterShape, Node
from orchestrator.config import ModelConfig
from orchestrator.errors import ModelError
from orchestrator.fleet import node_models

A, B = "aa" * 28, "bb" * 28


class Nodes:
    """Stands for Ray: runs nothing, and answers as each node would."""

    def __init__(self, answers: dict[str, Exception | None]) -> None:
        self.answers, self.asked = answers, []

    def nodes(self) -> list[dict]:
        named = [{"NodeID": name, "Alive": True, "NodeManagerAddress": f"ip-{name}"} for name in self.answers]
        return [*named, {"NodeID": "dead", "Alive": False, "NodeManagerAddress": "x"}]

    def get_runtime_context(self) -> SimpleNamespace:
        return SimpleNamespace(get_node_id=lambda: "here")

    def remote(self, **_: object):
        def task(work: object) -> Nodes:
            assert work is node_models.models.resolve
            return self

        return task

    def options(self, scheduling_strategy: object) -> SimpleNamespace:
        """As Ray's: what it returns has no `options` itself."""
        self.there = getattr(scheduling_strategy, "node_id", None)
        return SimpleNamespace(remote=self.call)

    def call(self, model: ModelConfig, *_: object) -> tuple[str, str]:
        self.asked.append((self.there, model.name))
        return self.asked[-1]

    def get(self, call: tuple[str, str], timeout: float) -> None:
        if error := self.answers[call[0]]:
            raise error


@pytest.fixture
def everywhere(make_app, monkeypatch: pytest.MonkeyPatch):
    def make(*models: str, **answers: Exception | None) -> list[tuple[str, str]]:
        nodes = Nodes({"here": None, **answers})
        for name in ("nodes", "get_runtime_context", "remote", "get"):
            monkeypatch.setattr(node_models.ray, name, getattr(nodes, name))
        shape = ClusterShape((Node(1.0),) * len(nodes.answers))
        node_models.make_everywhere([make_app(f"model={model}") for model in models], shape)
        return nodes.asked

    return make


def test_every_other_node_makes_each(everywhere) -> None:
    asked = everywhere("tiny_llama", "smollm2_135m", **{A: None, B: None})
    assert sorted(asked) == [(n, m) for n in (A, B) for m in ("smollm2_135m", "tiny_llama")]


def test_models_of_the_hub_and_single_nodes_ask_nobody(everywhere) -> None:
    assert everywhere("llama_3_1_8b", **{A: None}) == []
    assert everywhere("tiny_llama") == []


def test_a_node_that_cannot_is_told_and_one_that_is_lost_is_not(everywhere) -> None:
    assert len(everywhere("tiny_llama", **{A: NodeDiedError("gone"), B: None})) == 2
    error = RayTaskError("resolve", "trace", PermissionError(13, "Permission denied", "/state"))
    with pytest.raises(ModelError, match=rf"Node ip-{B} cannot make tiny_llama: PermissionError.*/state"):
        everywhere("tiny_llama", **{B: error})
