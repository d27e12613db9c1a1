"""The FX pass of the layer-index KV update: takes layer names out of compiled pieces, hands them to stitching code.

Before vLLM splits the traced graph, `take_names` replaces each KV-update node by an op without a name and writes down
the names in call order; these nodes are then no splitting ops, so the update stays in the compiled piece. When vLLM
generates the stitching code, `announce_names` writes the names into it, in front of the piece that needs them. That
code is saved inside vLLM's AOT artifact, so a warm load brings its names along and has nothing to trace.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from orchestrator import compat
from orchestrator.compat import table

UPDATE_OPS = ("vllm::unified_kv_cache_update", "vllm::unified_mla_kv_cache_update")
OURS = "orchestrator"  # the namespace of the ops without a name
_NAME_ARG = 2  # of both ops
_NAME_META = "orchestrator_layer"


class CannotRewrite(Exception):
    """This graph has a shape that the pass does not handle; the message is the logged reason."""


@dataclass(frozen=True)
class Update:
    """One KV-update node, its layer, and the attention node that waits for it."""

    node: fx.Node
    layer: str
    attention: fx.Node


def op_name(node: fx.Node) -> str:
    """`namespace::name` of a call_function node's custom op, or ""."""
    target: Any = node.target
    if isinstance(target, compat.get(table.OP_OVERLOAD)):
        return str(target.name()).partition(".")[0]
    return str(target._qualified_op_name) if isinstance(target, compat.get(table.OP_PACKET)) else ""


def find_updates(graph: fx.Graph, splitting_ops: list[str]) -> list[Update]:
    """All KV updates in call order, each paired with its attention op by data flow.

    Raises:
        CannotRewrite: a name is unknown, an update has no attention op of its own, the names of the two differ, or
            attention is not a splitting op (then there is no stitching code between layers).
    """
    updates = []
    for node in graph.nodes:
        if node.op != "call_function" or op_name(node) not in UPDATE_OPS:
            continue
        layer = _layer_of(_argument(node, "layer_name", _NAME_ARG))
        readers = [user for user in node.users if user.op == "call_function"]
        if len(readers) != 1 or len(node.users) != 1:
            raise CannotRewrite(f"the KV update of {layer} is read by {len(node.users)} nodes, not one attention op")
        attention = readers[0]
        if op_name(attention) not in splitting_ops:
            raise CannotRewrite(f"{op_name(attention) or attention.target} is not a splitting op")
        attended = _layer_of(_argument(attention, "layer_name", None))
        if attended != layer:
            raise CannotRewrite(f"the KV update of {layer} is read by the attention of {attended}")
        updates.append(Update(node, layer, attention))
    return updates


def take_names(graph: fx.Graph, updates: list[Update], *, keep_name: bool) -> None:
    """Replace each update by the op without a name, or (`keep_name`) by one with the name baked in."""
    for update in updates:
        node = update.node
        mla = op_name(node) == UPDATE_OPS[1]
        base = "mla_kv_cache_update" if mla else "kv_cache_update"
        packet = getattr(getattr(torch.ops, OURS), f"{base}_named" if keep_name else base)
        args = [node.args[i] if i < len(node.args) else node.kwargs[n] for i, n in enumerate(_schema_names(node))]
        args[_NAME_ARG : _NAME_ARG + 1] = [update.layer] if keep_name else []
        node.target = packet.default
        node.args, node.kwargs = tuple(args), {}
        if not keep_name:
            node.meta[_NAME_META] = update.layer


def localise_sizes(graph: fx.Graph) -> None:
    """Let each user of a size compute it for itself, instead of getting it from another layer's piece.

    Tracing computes the workspace size of a mixture of experts once, in the first such layer, and hands it on: that
    alone makes the first layer's piece another graph than all the others.
    """
    for node in list(graph.nodes):
        sizes_only = all(_is_size(source) for source in node.all_input_nodes)
        if node.op != "call_function" or not _is_size(node) or not sizes_only:
            continue
        for user in list(node.users)[1:]:
            with graph.inserting_before(user):
                user.replace_input_with(node, graph.node_copy(node))


def _is_size(node: fx.Node) -> bool:
    return isinstance(node.meta.get("example_value"), torch.SymInt)


def announce_names(split: fx.GraphModule) -> None:
    """Write `enter_piece` before each piece with nameless updates and `check_layer` before the attention it feeds."""
    from orchestrator.vllm_plugin import kv_runtime

    position: dict[fx.Node, dict[int, int]] = {}  # piece -> output index -> position among its updates
    for node in list(split.graph.nodes):
        if node.op != "call_module":
            continue
        piece = split._modules[str(node.target)]  # the FX graph, also where a compiled backend shadows it
        names, outputs = _updates_in(piece)
        if names:
            position[node] = outputs
            with split.graph.inserting_before(node):
                split.graph.call_function(kv_runtime.enter_piece, (names,))
            continue
        for layer, source in _attentions_in(piece, node):
            origin, index = _origin(source)
            if origin in position and index in position[origin]:
                with split.graph.inserting_before(node):
                    split.graph.call_function(kv_runtime.check_layer, (position[origin][index], layer))


def _updates_in(piece: fx.GraphModule) -> tuple[tuple[str, ...], dict[int, int]]:
    # placeholders of later pieces inherit an update's meta: only calls count
    updates = [n for n in piece.graph.nodes if n.op == "call_function" and _NAME_META in n.meta]
    (returned,) = piece.graph.output_node().args
    outputs = returned if isinstance(returned, (tuple, list)) else (returned,)
    order = {node: i for i, node in enumerate(updates)}
    return tuple(n.meta[_NAME_META] for n in updates), {i: order[o] for i, o in enumerate(outputs) if o in order}


def _attentions_in(piece: fx.GraphModule, call: fx.Node) -> list[tuple[Any, Any]]:
    """(layer name, KV-update result) of each attention op in a splitting piece, as the stitching graph sees them."""
    outer = dict(zip(piece.graph.find_nodes(op="placeholder"), call.args, strict=True))
    found = []
    for node in piece.graph.nodes:
        if node.op == "call_function" and "kv_cache_dummy_dep" in _schema_names(node):
            layer = _argument(node, "layer_name", None)
            found.append((outer.get(layer, layer), outer.get(_argument(node, "kv_cache_dummy_dep", None))))
    return found


def _origin(source: Any) -> tuple[Any, int]:
    """The (piece, output index) that a stitching-graph value comes from."""
    if isinstance(source, fx.Node) and source.op == "call_function" and len(source.args) == 2:
        return source.args[0], int(source.args[1])  # type: ignore[arg-type]
    return source, 0


def _schema_names(node: fx.Node) -> list[str]:
    target: Any = node.target
    overload = target.default if isinstance(target, compat.get(table.OP_PACKET)) else target
    schema = getattr(overload, "_schema", None)
    return [argument.name for argument in schema.arguments] if schema else []


def _argument(node: fx.Node, name: str, index: int | None) -> Any:
    if name in node.kwargs:
        return node.kwargs[name]
    names = _schema_names(node)
    at = names.index(name) if name in names else index
    return node.args[at] if at is not None and at < len(node.args) else None


def _layer_of(argument: Any) -> str:
    """The layer's name behind a node argument: a str, vLLM's LayerName, or a hoisted placeholder of one."""
    if isinstance(argument, fx.Node):
        argument = argument.meta.get("example_value", argument)
    argument = getattr(argument, "real_obj", argument)  # torch's FakeScriptObject
    argument = getattr(argument, "value", argument)  # vLLM's LayerName
    if not isinstance(argument, str):
        raise CannotRewrite(f"a layer name is not known while tracing ({type(argument).__name__})")
    return argument
