"""Tracing repeated layers once gives the same flat graph as tracing each of them, on real Dynamo graphs."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import fx, nn

from orchestrator.vllm_plugin import trace_once


class Layer(nn.Module):
    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.scale = scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.relu(self.linear(x)) * self.scale


class Odd(Layer):
    pass


class Model(nn.Module):
    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def traced(model: Model, x: torch.Tensor, *, once: bool) -> tuple[fx.GraphModule, torch.Tensor]:
    """The graph that the compiler gets, and what it computes when Dynamo feeds it the model's weights."""
    found: list[fx.GraphModule] = []

    def backend(graph: fx.GraphModule, inputs: list[torch.Tensor]) -> object:
        trace_once.inline_regions(graph)
        found.append(graph)
        return graph.forward

    torch._dynamo.reset()
    kinds = trace_once.alike_layers(model) if once else []
    token = trace_once._tracing.set((model, kinds) if once else None)
    try:
        with trace_once.compile_regions(kinds):
            answer = torch.compile(model, backend=backend, fullgraph=True)(x)
    finally:
        trace_once._tracing.reset(token)
    return found[0], answer


@pytest.mark.parametrize(
    "layers",
    [
        pytest.param([Layer() for _ in range(6)], id="alike"),
        pytest.param([Layer(float(i)) for i in range(5)], id="each with a constant of its own"),
        pytest.param([Layer(), Odd(), Layer(), Odd(), Layer(), Odd()], id="two kinds in turn"),
    ],
)
def test_the_flat_graph_is_the_same_and_each_layer_has_its_weights(layers: list[nn.Module]) -> None:
    model, x = Model(layers), torch.randn(2, 4)
    plain, _ = traced(model, x, once=False)
    once, answer = traced(model, x, once=True)
    calls = [[str(n.target) for n in g.graph.nodes if n.op == "call_function"] for g in (plain, once)]
    assert calls[0] == calls[1]
    assert torch.equal(answer, model(x))


def test_forwards_are_put_back() -> None:
    own, inherited = Layer.forward, Odd.__dict__.get("forward")
    with trace_once.compile_regions([Layer, Odd]):
        assert Layer.forward is not own
    assert Layer.forward is own
    assert Odd.__dict__.get("forward") is inherited is None


def test_only_layers_that_come_three_times_are_repeated() -> None:
    assert trace_once.alike_layers(Model([Layer(), Odd(), Layer(), Layer()])) == [Layer]
    assert trace_once.alike_layers(Model([Layer(), Odd(), Layer()])) == []


class Elsewhere(nn.Identity):
    """As vLLM's PPMissingLayer: the layers of other pipeline ranks."""


def test_layers_of_other_pipeline_ranks_are_no_kind() -> None:
    model = Model([*(Elsewhere() for _ in range(4)), *(Layer() for _ in range(4)), *(Elsewhere() for _ in range(4))])
    assert trace_once.alike_layers(model) == [Layer]
    x = torch.randn(2, 4)
    once, answer = traced(model, x, once=True)
    assert torch.equal(answer, model(x))
    assert sum(n.target is torch.relu for n in once.graph.nodes) == 4


class Turned(Layer):
    """A layer with a table that layers share, as rotary embeddings are."""

    def __init__(self, table: nn.Module) -> None:
        super().__init__()
        self.table = table

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * self.table.weight


def test_layers_that_share_one_table_are_traced_once() -> None:
    table = nn.Linear(4, 1, bias=False)
    model, x = Model([Turned(table) for _ in range(6)]), torch.randn(2, 4)
    assert trace_once.alike_layers(model) == [Turned]
    assert torch.equal(traced(model, x, once=True)[1], model(x))


@pytest.mark.parametrize("odd", range(6))
def test_a_layer_with_another_table_gets_its_own(odd: int) -> None:
    """Gemma 3: one layer in six has another rotary embedding, and torch would stamp out the others'."""
    table, other = nn.Linear(4, 1, bias=False), nn.Linear(4, 1, bias=False)
    model, x = Model([Turned(other if i == odd else table) for i in range(6)]), torch.randn(2, 4)
    assert trace_once.alike_layers(model) == []
    assert torch.equal(traced(model, x, once=True)[1], model(x))


def test_a_graph_with_another_layers_tensors_is_not_taken(monkeypatch) -> None:
    """The second line: what torch stamps out is checked, even where the layers were taken for alike."""
    table, other = nn.Linear(4, 1, bias=False), nn.Linear(4, 1, bias=False)
    model = Model([Turned(other if i == 4 else table) for i in range(6)])
    monkeypatch.setattr(trace_once, "alike_layers", lambda _: [Turned])
    with pytest.raises(Exception, match=r"one Turned uses table\.weight of its own, and another does not"):
        traced(model, torch.randn(2, 4), once=True)


def test_a_table_in_the_model_around_counts_too() -> None:
    tables = [nn.Linear(4, 1, bias=False) for _ in range(4)]
    model = Model([Turned(table) for table in tables])
    assert trace_once.alike_layers(model) == [Turned]
    model.table = tables[1]
    assert trace_once.alike_layers(model) == []


def test_settings_deep_in_a_layer_count_too() -> None:
    def layers(*settings: object) -> Model:
        found = [Layer() for _ in settings]
        for layer, setting in zip(found, settings, strict=True):
            layer.implementation = SimpleNamespace(inner=[setting])
        return Model(list(found))

    one, two = SimpleNamespace(window=1), SimpleNamespace(window=2)
    assert trace_once.alike_layers(layers(one, one, one, one)) == [Layer]
    assert trace_once.alike_layers(layers(one, one, two, two)) == []
    assert trace_once.alike_layers(layers(one, one, one, two)) == []


class Fails:
    """Stands in for a compiled model whose trace fails in a region, but not without."""

    def __init__(self, reached: bool = False) -> None:
        self.vllm_config = SimpleNamespace(additional_config={"orchestrator": {"kv_update": "layer_index"}})
        self.tried = 0
        self.reached = reached

    def children(self) -> list[nn.Module]:
        return [nn.ModuleList(Layer() for _ in range(3))]

    def compile(self) -> str:
        self.tried += 1
        if self.tried == 1:
            if self.reached:
                trace_once.inline_regions(fx.GraphModule(nn.Module(), fx.Graph()))
            raise RuntimeError("not supported in a region")
        return "compiled"


def test_a_trace_that_fails_is_done_again_layer_by_layer() -> None:
    model = Fails()
    assert trace_once._traced(model, model.compile) == "compiled"
    assert model.tried == 2


def test_what_fails_after_the_trace_is_not_tried_again() -> None:
    model = Fails(reached=True)
    with pytest.raises(RuntimeError, match="not supported"):
        trace_once._traced(model, model.compile)
    assert model.tried == 1
