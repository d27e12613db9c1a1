"""The graph pass on real FX graphs: names by call order, one graph for all layers, and every refusal.

The ops are stand-ins with vLLM's schemas, in a namespace of their own: the real ones may be in this process too.
"""

from __future__ import annotations

import logging
import operator
from types import SimpleNamespace

import pytest
import torch
from torch import fx
from torch._library.fake_class_registry import FakeScriptObject
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.fx.passes.split_module import split_module

from orchestrator.vllm_plugin import compiler_hooks, kv_pass

library = torch.library.Library("standin", "FRAGMENT")
library.define("unified_kv_cache_update(Tensor key, Tensor value, str layer_name) -> Tensor")
library.define(
    "unified_mla_kv_cache_update(Tensor kv_c, Tensor k_pe, str layer_name, str kv_cache_dtype, Tensor k_scale)"
    " -> Tensor"
)
library.define(
    "unified_attention_with_output(Tensor q, Tensor k, Tensor v, Tensor output, str layer_name, "
    "Tensor? kv_cache_dummy_dep=None) -> ()"
)
ours = torch.library.Library("standin_ours", "FRAGMENT")
ours.define("kv_cache_update(Tensor key, Tensor value) -> Tensor")
ours.define("kv_cache_update_named(Tensor key, Tensor value, str layer_name) -> Tensor")
ours.define("mla_kv_cache_update(Tensor kv_c, Tensor k_pe, str kv_cache_dtype, Tensor k_scale) -> Tensor")
vllm = torch.ops.standin
SPLITTING = ["standin::unified_attention_with_output"]


@pytest.fixture(autouse=True)
def standins(monkeypatch) -> None:
    names = tuple(name.replace("vllm::", "standin::") for name in kv_pass.UPDATE_OPS)
    monkeypatch.setattr(kv_pass, "UPDATE_OPS", names)
    monkeypatch.setattr(kv_pass, "OURS", "standin_ours")


class Name:
    """Like vLLM's LayerName, as Dynamo hoists it: a placeholder whose fake value wraps it."""

    def __init__(self, value: str) -> None:
        self.value = value


def model(
    names: list[str], *, hoisted: bool = True, mla: bool = False, attend: list[str] | None = None
) -> fx.GraphModule:
    graph = fx.Graph()
    x, scale = graph.placeholder("x"), graph.placeholder("scale")
    holders = {}
    for name in dict.fromkeys([*names, *(attend or [])]):
        if hoisted:
            holders[name] = graph.placeholder(name.replace(".", "_"))
            holders[name].meta["example_value"] = FakeScriptObject(object(), "vllm.LayerName", Name(name))
        else:
            holders[name] = name
    for i, name in enumerate(names):
        k = graph.call_function(torch.relu, (x,))
        if mla:
            args = (k, k, holders[name], "auto", scale)
            done = graph.call_function(vllm.unified_mla_kv_cache_update, args)
        else:
            done = graph.call_function(vllm.unified_kv_cache_update, (k, k, holders[name]))
        out = graph.call_function(torch.empty_like, (k,))
        layer = holders[(attend or names)[i]]
        graph.call_function(vllm.unified_attention_with_output, (k, k, k, out, layer), {"kv_cache_dummy_dep": done})
        x = graph.call_function(torch.add, (x, out))
    graph.output((x,))
    return fx.GraphModule(torch.nn.Module(), graph)


def split(gm: fx.GraphModule) -> fx.GraphModule:
    """As vLLM splits: attention alone, everything between together."""
    parts, current = {}, 0
    for node in gm.graph.nodes:
        if node.op in ("placeholder", "output"):
            continue
        if kv_pass.op_name(node) in SPLITTING:
            parts[node] = current + 1
            current += 2
        elif node.target is operator.getitem:
            parts[node] = parts[node.args[0]]
        else:
            parts[node] = current
    return split_module(gm, None, lambda n: parts[n], keep_original_order=True, tuple_return=True)


# Call order is not creation order: a shared block, as in Zamba2, and a loop.
ORDER = ["model.layers.5.attn", "model.layers.0.attn", "model.layers.3.attn"]


@pytest.mark.parametrize("hoisted", [True, False])
def test_names_come_in_call_order_and_leave_the_pieces(hoisted: bool) -> None:
    gm = model(ORDER, hoisted=hoisted)
    updates = kv_pass.find_updates(gm.graph, SPLITTING)
    assert [u.layer for u in updates] == ORDER
    kv_pass.take_names(gm.graph, updates, keep_name=False)
    assert not [n for n in gm.graph.nodes if kv_pass.op_name(n) in kv_pass.UPDATE_OPS]
    stitched = split(gm)
    pieces = [m for _, m in stitched.named_children() if "standin_ours.kv_cache_update" in m.code]
    assert len(pieces) == len(ORDER)
    assert not [piece for piece in pieces if "layers" in piece.code]


class Runtime:
    """Stands in for kv_runtime, which needs vLLM: remembers what the stitching code says."""

    def __init__(self, monkeypatch) -> None:
        import sys
        import types

        module = types.ModuleType("orchestrator.vllm_plugin.kv_runtime")

        def enter_piece(names): ...
        def check_layer(position, layer): ...

        module.enter_piece, module.check_layer = enter_piece, check_layer
        monkeypatch.setitem(sys.modules, module.__name__, module)
        import orchestrator.vllm_plugin

        monkeypatch.setattr(orchestrator.vllm_plugin, "kv_runtime", module, raising=False)
        self.module = module


@pytest.mark.parametrize("mla", [False, True])
def test_the_stitching_code_announces_and_checks_each_layer(monkeypatch, mla: bool) -> None:
    runtime = Runtime(monkeypatch).module
    gm = model(ORDER, mla=mla)
    kv_pass.take_names(gm.graph, kv_pass.find_updates(gm.graph, SPLITTING), keep_name=False)
    stitched = split(gm)
    kv_pass.announce_names(stitched)
    calls = [n for n in stitched.graph.nodes if n.op == "call_function" and n.target is not operator.getitem]
    entered = [n.args[0] for n in calls if n.target is runtime.enter_piece]
    checked = [(n.args[0], n.args[1].name) for n in calls if n.target is runtime.check_layer]
    assert entered == [(name,) for name in ORDER]
    assert checked == [(0, name.replace(".", "_")) for name in ORDER]
    order = [n.target for n in stitched.graph.nodes if n.op != "placeholder"]
    first = order.index(runtime.enter_piece)
    assert order[first + 1] == "submod_0"
    stitched.graph.lint()


def test_inline_keeps_each_name_in_its_graph() -> None:
    gm = model(ORDER)
    kv_pass.take_names(gm.graph, kv_pass.find_updates(gm.graph, SPLITTING), keep_name=True)
    baked = [n.args[2] for n in gm.graph.nodes if kv_pass.op_name(n) == "standin_ours::kv_cache_update_named"]
    assert baked == ORDER


def test_mla_keeps_its_other_arguments() -> None:
    gm = model(ORDER[:1], mla=True)
    kv_pass.take_names(gm.graph, kv_pass.find_updates(gm.graph, SPLITTING), keep_name=False)
    (node,) = [n for n in gm.graph.nodes if kv_pass.op_name(n) == "standin_ours::mla_kv_cache_update"]
    assert node.args[2] == "auto"
    assert node.args[3].name == "scale"


def test_an_update_for_another_layer_than_its_attention_is_not_rewritten() -> None:
    gm = model(["a.attn", "b.attn"], attend=["b.attn", "a.attn"])
    with pytest.raises(kv_pass.CannotRewrite, match=r"the KV update of a\.attn is read by the attention of b\.attn"):
        kv_pass.find_updates(gm.graph, SPLITTING)


def test_an_unsplit_graph_is_not_rewritten() -> None:
    with pytest.raises(kv_pass.CannotRewrite, match="is not a splitting op"):
        kv_pass.find_updates(model(ORDER).graph, [])


def test_an_unknown_name_is_not_rewritten() -> None:
    gm = model(ORDER)
    next(n for n in gm.graph.nodes if n.name.startswith("model_layers")).meta.clear()
    with pytest.raises(kv_pass.CannotRewrite, match="not known while tracing"):
        kv_pass.find_updates(gm.graph, SPLITTING)


def test_a_layer_without_an_update_is_left_alone(monkeypatch) -> None:
    """KV sharing and wrapped backends: an attention op with no update before it."""
    runtime = Runtime(monkeypatch).module
    graph = fx.Graph()
    x = graph.placeholder("x")
    out = graph.call_function(torch.empty_like, (x,))
    graph.call_function(vllm.unified_attention_with_output, (x, x, x, out, "shared.attn"))
    graph.output((graph.call_function(torch.add, (x, out)),))
    gm = fx.GraphModule(torch.nn.Module(), graph)
    assert kv_pass.find_updates(gm.graph, SPLITTING) == []
    stitched = split(gm)
    kv_pass.announce_names(stitched)
    assert not [n for n in stitched.graph.nodes if n.target in (runtime.enter_piece, runtime.check_layer)]


def test_sizes_are_computed_where_they_are_used() -> None:
    """One `prod` with users in three layers becomes one for each, and the graph still says the same."""
    size = ShapeEnv().create_unbacked_symint()
    graph = fx.Graph()
    x, tokens = graph.placeholder("x"), graph.placeholder("tokens")
    tokens.meta["example_value"] = size
    workspace = graph.call_function(operator.mul, (tokens, 4))
    workspace.meta["example_value"] = size * 4
    sums = [graph.call_function(torch.add, (x, workspace)) for _ in range(3)]
    graph.output(tuple(sums))
    gm = fx.GraphModule(torch.nn.Module(), graph)
    kv_pass.localise_sizes(graph)
    graph.lint()
    gm.recompile()
    assert len({s.args[1] for s in sums}) == 3
    assert [float(t) for t in gm(torch.tensor(1.0), 2)] == [9.0, 9.0, 9.0]


def config(*, context_parallel: int = 1, hisparse: object = None, partition: bool = False) -> SimpleNamespace:
    return SimpleNamespace(
        parallel_config=SimpleNamespace(prefill_context_parallel_size=context_parallel),
        attention_config=SimpleNamespace(hisparse_config=hisparse),
        compilation_config=SimpleNamespace(use_inductor_graph_partition=partition, pass_config=SimpleNamespace()),
    )


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({}, ""),
        ({"context_parallel": 2}, "prefill context parallelism updates by each batch's counts"),
        ({"hisparse": SimpleNamespace()}, "HiSparse updates by each batch's rows"),
        ({"partition": True}, "Inductor partitions the graph"),
    ],
)
def test_updates_that_a_cuda_graph_would_freeze_stay_outside(asked: dict, reason: str, monkeypatch, caplog) -> None:
    pytest.importorskip("vllm.utils.torch_utils")
    monkeypatch.setattr(logging.getLogger("vllm"), "propagate", True)
    given = [*SPLITTING, kv_pass.UPDATE_OPS[1]]
    token = compiler_hooks._compiling.set(config(**asked))
    split: list[list[str]] = []
    try:
        compiler_hooks._split_in_mode("layer_name", model(ORDER, mla=True), given, lambda _, ops: split.append(ops))
    finally:
        compiler_hooks._compiling.reset(token)
    assert split == [given if reason else SPLITTING]
    assert f"falls back to split: {reason}" in caplog.text or not reason
