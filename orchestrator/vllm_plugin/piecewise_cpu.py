"""Piecewise compile on vLLM's CPU platform, for engines that ask for the plugin.

vLLM's CPU platform turns VLLM_COMPILE into one whole-graph compile, so no two layers share a graph, and what it saves
cannot be loaded again. Restoring VLLM_COMPILE gives CPU the same VllmBackend, PiecewiseBackend and AOT artifacts that
GPUs use.
"""

from __future__ import annotations

from typing import Any

from orchestrator.vllm_plugin.settings import kv_update_mode, logger

# Fusions whose patterns name CUDA-only custom ops.
_CUDA_FUSIONS = ("fuse_norm_quant", "fuse_act_quant", "fuse_attn_quant")


def install() -> None:
    """Wrap the CPU platform's config hook; does nothing on other platforms."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from vllm.compilation.passes.utility.fix_functionalization import FixFunctionalizationPass
    from vllm.config import CompilationMode

    platform = type(current_platform)
    original = platform.check_and_update_config.__func__

    def check_and_update_config(cls: type, vllm_config: Any) -> None:
        compilation = vllm_config.compilation_config
        wanted = compilation.mode == CompilationMode.VLLM_COMPILE
        original(cls, vllm_config)
        if kv_update_mode(vllm_config) is None or not wanted:
            return
        if compilation.mode != CompilationMode.DYNAMO_TRACE_ONCE or compilation.backend != "inductor":
            logger.info("Piecewise compile stays off: the platform chose mode=%s.", compilation.mode)
            return
        compilation.mode = CompilationMode.VLLM_COMPILE
        if compilation.compile_sizes is None:
            compilation.compile_sizes = []
        for fusion in _CUDA_FUSIONS:
            setattr(compilation.pass_config, fusion, False)

    def leave_functionalized(self: Any, graph: Any) -> None:
        """The pass names CUDA-only ops that this build lacks; Inductor decomposes what it would have rewritten."""

    platform.check_and_update_config = classmethod(check_and_update_config)
    FixFunctionalizationPass.__call__ = leave_functionalized
