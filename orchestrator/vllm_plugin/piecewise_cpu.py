"""Piecewise compile on vLLM's CPU platform, for engines that ask for the plugin.

vLLM's CPU platform turns VLLM_COMPILE into one whole-graph compile, so no two layers share a graph, and what it saves
cannot be loaded again. Restoring VLLM_COMPILE gives CPU the same VllmBackend, PiecewiseBackend and AOT artifacts that
GPUs use.
"""

from __future__ import annotations

from typing import Any

from orchestrator import compat
from orchestrator.compat import features, table
from orchestrator.vllm_plugin.settings import kv_update_mode, logger

# Fusions whose patterns name CUDA-only custom ops.
_CUDA_FUSIONS = ("fuse_norm_quant", "fuse_act_quant", "fuse_attn_quant")
_ASKED = "orchestrator_asked"  # of a pass: its engine asks for the plugin


def install() -> None:
    """Wrap the CPU platform's config hook, and a pass; does nothing on other platforms."""
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        compat.patch(table.CPU_CONFIG, _restored)
        compat.patch(table.FIX_PASS_INIT, _told)
        compat.patch(table.FIX_PASS, _left_alone)


def _restored(original: Any) -> Any:
    from vllm.config import CompilationMode

    def check_and_update_config(cls: type, vllm_config: Any) -> None:
        compilation = vllm_config.compilation_config
        wanted = compilation.mode == CompilationMode.VLLM_COMPILE
        original(cls, vllm_config)
        if kv_update_mode(vllm_config) is None or not wanted or not compat.on(features.PIECEWISE):
            return
        if compilation.mode != CompilationMode.DYNAMO_TRACE_ONCE or compilation.backend != "inductor":
            logger.info("Piecewise compile stays off: the platform chose mode=%s.", compilation.mode)
            return
        compilation.mode = CompilationMode.VLLM_COMPILE
        if compilation.compile_sizes is None:
            compilation.compile_sizes = []
        for fusion in _CUDA_FUSIONS:
            setattr(compilation.pass_config, fusion, False)

    return check_and_update_config


def _told(original: Any) -> Any:
    def __init__(self: Any, config: Any) -> None:
        original(self, config)
        setattr(self, _ASKED, kv_update_mode(config) is not None)

    return __init__


def _left_alone(original: Any) -> Any:
    def __call__(self: Any, graph: Any) -> None:
        # The pass names CUDA-only ops that this build lacks; Inductor decomposes what it would have rewritten
        if not getattr(self, _ASKED, False):
            original(self, graph)

    return __call__
