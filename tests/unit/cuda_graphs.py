"""CUDA graphs without a GPU: what capture keeps and replay does again, for vLLM's own wrapper around compiled pieces.

A captured graph is the kernels that ran, with the very memory and the very numbers that they were given. So here it is
the list of torch's calls, taken below the custom ops, since those are Python, which a replay does not run. A replay
makes the same calls on the same tensors, and writes each result where the first one lay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from vllm.compilation import codegen, cuda_graph
from vllm.compilation.backends import split_graph
from vllm.config import CUDAGraphMode
from vllm.model_executor.layers.attention import attention, mla_attention

from orchestrator.vllm_plugin import compiler_hooks, kv_runtime

SPLITTING = [
    f"vllm::unified_{op}"
    for op in ("attention_with_output", "kv_cache_update", "mla_attention_with_output", "mla_kv_cache_update")
]
# a custom op -> the Python in it, which launches kernels
PYTHON: dict[Any, Callable[..., Any]] = {
    torch.ops.orchestrator.kv_cache_update.default: kv_runtime.kv_cache_update,
    torch.ops.orchestrator.mla_kv_cache_update.default: kv_runtime.mla_kv_cache_update,
    torch.ops.vllm.unified_kv_cache_update.default: attention.unified_kv_cache_update,
    torch.ops.vllm.unified_attention_with_output.default: attention.unified_attention_with_output,
    torch.ops.vllm.unified_mla_kv_cache_update.default: mla_attention.unified_mla_kv_cache_update,
    torch.ops.vllm.unified_mla_attention_with_output.default: mla_attention.unified_mla_attention_with_output,
}
_NO_KERNEL = ("empty", "new_empty", "empty_like", "empty_strided")


class Graph:
    """Stands for `torch.cuda.CUDAGraph`."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    @torch.inference_mode()
    def replay(self) -> None:
        """Launch the kernels again."""
        for op, args, kwargs, results in self.calls:
            for old, new in zip(tree_leaves(results), tree_leaves(op(*args, **kwargs)), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class Capture(TorchDispatchMode):
    """While it is on, this thread's kernels are written into a graph."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if op is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing: a value is read from the device")
        if op in PYTHON:
            with self:
                return PYTHON[op](*args, **kwargs)
        results = op(*args, **kwargs)
        if not op.is_view and op.overloadpacket.__name__ not in _NO_KERNEL:
            self.graph.calls.append((op, args, kwargs, results))
        return results


@contextmanager
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let vLLM's `CUDAGraphWrapper` capture and replay here."""
    with monkeypatch.context() as patched:
        patched.setattr(torch.cuda, "CUDAGraph", Graph)
        patched.setattr(torch.cuda, "graph", lambda graph, **_: Capture(graph))
        for name, stand_in in (
            ("current_stream", lambda: None),
            ("weak_ref_tensors", lambda tensors: tensors),
            ("capture_pool", lambda *_: nullcontext()),
            ("validate_cudagraph_capturing_enabled", lambda: None),
            ("current_platform", SimpleNamespace(get_global_graph_pool=lambda: None)),
        ):
            patched.setattr(cuda_graph, name, stand_in)
        yield


def compiled(
    model: torch.nn.Module, kv_update: str, around: Callable[[], AbstractContextManager[Any]] = nullcontext
) -> Callable[..., Any]:
    """The model as vLLM runs it on a GPU, but for Inductor: traced, split, stitched, pieces and whole in graphs.

    Args:
        model: takes a tensor [tokens, width].
        kv_update: the plugin's mode.
        around: a context for each run of what was compiled.
    """
    config = SimpleNamespace(
        additional_config={"orchestrator": {"kv_update": kv_update}},
        parallel_config=SimpleNamespace(prefill_context_parallel_size=1),
        attention_config=SimpleNamespace(hisparse_config=None),
        compilation_config=SimpleNamespace(use_inductor_graph_partition=False, pass_config=SimpleNamespace()),
    )

    def wrapped(run: Callable[..., Any], mode: CUDAGraphMode) -> Callable[..., Any]:
        return cuda_graph.CUDAGraphWrapper(run, config, mode)

    def backend(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        token = compiler_hooks._compiling.set(config)
        try:
            split, items = compiler_hooks._split(split_graph)(graph, SPLITTING)
            pieces = {item.submod_name: item.graph for item in items if not item.is_splitting_graph}
            pieces = {name: wrapped(piece, CUDAGraphMode.PIECEWISE) for name, piece in pieces.items()}
            split.__dict__.update(pieces)  # as vLLM: stitching code inlines what is still a graph
            code, names, consts = compiler_hooks._announced(codegen.generate_execution_code)(split)
        finally:
            compiler_hooks._compiling.reset(token)
        whole = wrapped(codegen.compile_execution_fn(code, pieces, names, consts), CUDAGraphMode.FULL)

        def run(*args: Any) -> Any:
            with around():
                return whole(*args)

        return run

    torch._dynamo.reset()
    return torch.compile(model, backend=backend, fullgraph=True, dynamic=True)
