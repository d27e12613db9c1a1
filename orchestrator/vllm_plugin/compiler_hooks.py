"""The one place where the plugin enters vLLM's compiler: around the split of the traced graph.

All four `kv_update` modes are choices at this seam, so a graph that a mode cannot handle falls back to vLLM's own
`split` by simply not being rewritten; the reason is logged once.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

from torch import fx, nn

from orchestrator import compat
from orchestrator.compat import features, table
from orchestrator.vllm_plugin import trace_once
from orchestrator.vllm_plugin.settings import kv_update_mode, logger

_compiling: ContextVar[Any] = ContextVar("orchestrator_compiling", default=None)  # the VllmConfig being compiled

# Passes that look for the KV update by its own name and fuse it with RoPE: they would not find ours.
_KV_FUSIONS = (table.FUSE_ROPE, table.FUSE_NORM_ROPE, table.FUSE_MLA)


def install() -> None:
    """Wrap the compiler's call, its split, its stitching code and its artifact; each asks what the engine wants."""
    compat.patch(table.BACKEND_CALL, _known)
    compat.patch(table.SPLIT_GRAPH, _split)
    compat.patch(table.STITCHING, _announced)
    compat.patch(table.SERIALIZE, lambda serialize: lambda cls, compiled: serialize(cls, _without_graph(compiled)))


def _known(call: Any) -> Any:
    def compile_graph(self: Any, graph: Any, *args: Any, **kwargs: Any) -> Any:
        trace_once.inline_regions(graph)
        token = _compiling.set(self.vllm_config)
        try:
            return call(self, graph, *args, **kwargs)
        finally:
            _compiling.reset(token)

    return compile_graph


def _split(split_graph: Any) -> Any:
    def split(graph: Any, splitting_ops: list[str]) -> Any:
        mode = kv_update_mode(_compiling.get())
        if mode in (None, "split"):
            return split_graph(graph, splitting_ops)
        return _split_in_mode(str(mode), graph, splitting_ops, split_graph)

    return split


def _announced(generate: Any) -> Any:
    def generate_execution_code(split_gm: Any) -> Any:
        mode = kv_update_mode(_compiling.get())
        if mode not in ("layer_index", "inline"):
            return generate(split_gm)
        from orchestrator.vllm_plugin import kv_pass, kv_runtime

        if mode == "layer_index":
            kv_pass.announce_names(split_gm)
        # A warm load traces nothing: it is this import that registers our ops there.
        code, names, consts = generate(split_gm)
        module = kv_runtime.__name__
        return f"import {module}\n{module}.check_abi({kv_runtime.ABI})\n{code}", names, consts

    return generate_execution_code


def _without_graph(compiled: Any) -> Any:
    """The same function without its traced graph, which grows with depth and which nothing reads again.

    A self-contained artifact is loaded from its compiled pieces and its stitching code alone.
    """
    backend = compiled.vllm_backend
    if backend is None or kv_update_mode(backend.vllm_config) is None or not compat.on(features.SMALL_ARTIFACTS):
        return compiled
    whole = compat.read(table.MEGA_BACKEND, backend)
    whole = compat.get(table.MEGA_ARTIFACT) if whole is None else whole  # before 0.33 all backends are alike
    if not whole or compiled.execution_code is None:
        return compiled
    lean = object.__new__(type(compiled))
    lean.__dict__.update(compiled.__dict__, graph_module=fx.GraphModule(nn.Module(), fx.Graph()))
    return lean


def _split_in_mode(mode: str, graph: Any, splitting_ops: list[str], split_graph: Any) -> Any:
    from orchestrator.vllm_plugin import kv_pass

    try:
        _require_supported(mode)
        updates = kv_pass.find_updates(graph.graph, splitting_ops)
    except kv_pass.CannotRewrite as reason:
        logger.warning("kv_update=%s falls back to split: %s.", mode, reason)
        return split_graph(graph, splitting_ops)
    if mode == "layer_name":
        kept = [op for op in splitting_ops if op not in kv_pass.UPDATE_OPS]
        logger.info("kv_update=layer_name: %d KV updates stay in compiled pieces.", len(updates))
        return split_graph(graph, kept)
    from orchestrator.vllm_plugin import kv_runtime  # noqa: F401  (registers the ops)

    kv_pass.take_names(graph.graph, updates, keep_name=mode == "inline")
    kv_pass.localise_sizes(graph.graph)
    logger.info("kv_update=%s: %d KV updates stay in compiled pieces.", mode, len(updates))
    return split_graph(graph, splitting_ops)


def _require_supported(mode: str) -> None:
    from orchestrator.vllm_plugin.kv_pass import CannotRewrite

    if not compat.on(features.LAYER_INDEX):
        raise CannotRewrite("; ".join(line for line in compat.notes() if line.startswith(features.LAYER_INDEX.name)))
    config = _compiling.get()
    compilation = config.compilation_config
    if compat.read(table.PREFILL_CONTEXT, config.parallel_config) > 1:
        raise CannotRewrite("prefill context parallelism updates by each batch's counts, which CUDA graphs freeze")
    if compat.read(table.HISPARSE, config.attention_config) is not None:
        raise CannotRewrite("HiSparse updates by each batch's rows, which CUDA graphs freeze")
    if compat.read(table.PARTITION, compilation):
        raise CannotRewrite("Inductor partitions the graph, so there is no stitching code between layers")
    for fusion in _KV_FUSIONS:
        if compat.read(fusion, compilation.pass_config):
            raise CannotRewrite(f"{fusion.attribute.rpartition('.')[2]} resolves layer names on its own")
    if mode == "layer_name" and not compat.get(table.USE_LAYERNAME):
        raise CannotRewrite("LayerName needs torch 2.11 or newer and VLLM_USE_LAYERNAME=1")
