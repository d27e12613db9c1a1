"""Trace one layer of each kind instead of every layer: Dynamo's own time then hardly grows with depth.

While a model is traced, the forward of its repeated layers is a nested compile region: Dynamo traces the first layer
of a kind, checks the guards of every further one, and stamps the traced graph out with that layer's own weights and
names. The regions are inlined before vLLM sees the graph, which is then the same as without them.

Torch stamps out too much on one point: an object that it met first through another layer (a rotary embedding, say) is
taken for a constant, also by a layer that has another one in its place. So only layers that share the same objects, at
the same places, are traced together; see layer_equivalence.py.

Source: torch's `nested_compile_region` and its pass `inline_invoke_subgraph`, which names vLLM as its purpose.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import fx, nn

from orchestrator import compat
from orchestrator.compat import features, table
from orchestrator.vllm_plugin.layer_equivalence import alike
from orchestrator.vllm_plugin.settings import kv_update_mode, logger, trace_once

_FEWEST = 3  # a first layer often differs from the second, so only the third is sure to be stamped out
# The model whose layers are being traced as regions, and their kinds, until its graph is flat and checked.
_Tracing = tuple[nn.Module, list[type[nn.Module]]]
_tracing: ContextVar[_Tracing | None] = ContextVar("orchestrator_tracing", default=None)


class CannotInline(Exception):
    """The stamped-out graph cannot be made flat; the message is the logged reason."""


def install() -> None:
    """Wrap `aot_compile` of vLLM's compiled models; needs torch's inlining pass."""
    compat.patch(table.AOT_COMPILE, _once)


def _once(original: Any) -> Any:
    def aot_compile(self: Any, *args: Any, **kwargs: Any) -> Any:
        if kv_update_mode(self.vllm_config) is not None and not compat.of_this_vllm(table.BEGUN):
            logger.info(table.BEGUN.text)  # receipts ask for it, of every rank
        return _traced(self, lambda: original(self, *args, **kwargs))

    return aot_compile


def _traced(model: Any, compile_model: Callable[[], Any]) -> Any:
    kinds = alike_layers(model) if trace_once(model.vllm_config) and compat.on(features.TRACE_ONCE) else []
    if not kinds:
        return compile_model()
    token = _tracing.set((model, kinds))
    try:
        with compile_regions(kinds):
            return compile_model()
    except Exception as error:
        if _tracing.get() is None:  # the graph was complete: what failed came later, and would fail again
            raise
        logger.warning("trace_once falls back to tracing every layer: %s", " ".join(str(error).split())[:300])
    finally:
        _tracing.reset(token)
    return compile_model()


def alike_layers(model: nn.Module) -> list[type[nn.Module]]:
    """The classes of layers that come at least three times in one list, and of which all share the same objects."""
    kinds: dict[type[nn.Module], list[nn.Module]] = {}
    for layer in outer_layers(model):
        kinds.setdefault(type(layer), []).append(layer)
    kinds = {k: v for k, v in kinds.items() if any(True for _ in _tensors(v[0]))}  # or it stands in for another rank's
    repeated = {k: v for k, v in kinds.items() if len(v) >= _FEWEST and not hasattr(k, "aot_compile")}
    found = []
    for kind, layers in repeated.items():
        if alike(layers, model):
            found.append(kind)
        else:
            logger.info("trace_once: every %s is traced, since they share different objects.", kind.__name__)
    return found


def outer_layers(model: nn.Module) -> list[nn.Module]:
    """The entries of a model's outermost module lists."""
    found: list[nn.Module] = []
    for child in model.children():
        found += list(child) if isinstance(child, nn.ModuleList) else outer_layers(child)
    return found


@contextmanager
def compile_regions(kinds: list[type[nn.Module]]) -> Iterator[None]:
    """Make the forward of these classes a nested compile region, for the length of a trace."""
    from torch.compiler import nested_compile_region

    own: dict[type[nn.Module], Any] = {}
    try:
        for kind in kinds:
            own[kind] = kind.__dict__.get("forward")
            # the bound is on layers that differ from all before; it must never raise
            kind.forward = nested_compile_region(kind.forward, max_reuse_entries=1 << 20)  # type: ignore[method-assign]
        yield
    finally:
        for kind, forward in own.items():
            if forward is not None:
                kind.forward = forward
            elif "forward" in kind.__dict__:
                del kind.forward


def inline_regions(graph: fx.GraphModule) -> None:
    """Make a traced graph flat again, and check it; a graph without regions stays as it is.

    Raises:
        CannotInline: a region makes a size that only its data tells, so two layers would share one symbol; or a layer
            does not use its own tensors where its likes use theirs.
    """
    tracing = _tracing.get()
    if tracing is None:
        return
    inline: Any = compat.get(table.INLINE)
    regions = [module for module in graph.modules() if isinstance(module, fx.GraphModule) and module is not graph]
    for region in regions:
        if any(node.meta.get("unbacked_bindings") for node in region.graph.nodes):
            raise CannotInline("a layer has a size that depends on its data")
    before = len(graph.graph.nodes)
    inline(graph)
    if len(graph.graph.nodes) != before:
        check_tensors(graph, *tracing)
        graph.graph.lint()
        graph.delete_all_unused_submodules()
        graph.recompile()
        logger.info("trace_once: %d nodes traced, %d stamped out.", before, len(graph.graph.nodes))
    _tracing.set(None)


def check_tensors(graph: fx.GraphModule, model: nn.Module, kinds: list[type[nn.Module]]) -> None:
    """Where one layer of these kinds uses its parameter or buffer, every other one uses its own.

    Placeholders are told by their names, which Dynamo makes from the path of what they stand for.

    Raises:
        CannotInline: one does not, or the graph does not tell which tensors it uses.
    """
    names = {str(node.target).lower() for node in graph.graph.find_nodes(op="placeholder") if node.users}
    used = {id(tensor) for path, tensor in _tensors(model) if _placeholder(path, model) in names}
    places: dict[type[nn.Module], set[str]] = {}
    for layer in (layer for layer in outer_layers(model) if type(layer) in kinds):
        mine = {path for path, tensor in _tensors(layer) if id(tensor) in used}
        theirs = places.setdefault(type(layer), mine)
        if mine != theirs or not mine:
            paths = ", ".join(sorted(mine ^ theirs)[:3]) or "nothing"
            raise CannotInline(f"one {type(layer).__name__} uses {paths} of its own, and another does not")


def _placeholder(path: str, model: nn.Module) -> str:
    """Dynamo's placeholder for a tensor of `self`, as in `L['self']._modules['norm']._parameters['weight']`."""
    *modules, leaf = path.split(".")
    owner = model.get_submodule(".".join(modules))
    kind = "parameters" if leaf in owner._parameters else "buffers"
    source = "_".join(["l_self", *(f"modules_{name}" for name in modules), kind, leaf])
    return re.sub(r"[^0-9a-z]+", "_", f"{source}_".lower())


def _tensors(module: nn.Module) -> Iterator[tuple[str, Any]]:
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)
