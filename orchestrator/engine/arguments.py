"""vLLM's arguments: what our settings say, and `engine.extra`. The fleet's replicas and Serve's have the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.config import AppConfig, ColdStartConfig, extra


def engine_args(app: AppConfig, backend: str | None = None) -> dict[str, Any]:
    """Keyword arguments of vLLM's AsyncEngineArgs, but for `model`.

    Args:
        app: the checked configuration.
        backend: vLLM's executor, where placement decides it.
    """
    engine = app.engine
    args: dict[str, Any] = {
        "tensor_parallel_size": engine.tensor_parallel_size,
        "max_num_seqs": engine.max_num_seqs,
        "max_num_batched_tokens": engine.max_num_batched_tokens,
        "gpu_memory_utilization": engine.gpu_memory_utilization,
        "enforce_eager": engine.enforce_eager,
        "enable_prefix_caching": engine.enable_prefix_caching,
        "seed": engine.seed,
        "load_format": engine.load_format if app.model.weights else "dummy",
        "dtype": app.model.dtype,
        "max_model_len": app.model.max_model_len,
        "trust_remote_code": app.model.trust_remote_code,
        "revision": app.model.revision,
        "served_model_name": app.model.name,
    }
    if engine.kv_cache_gib is not None:
        args["kv_cache_memory_bytes"] = int(engine.kv_cache_gib * 2**30)
    if backend is not None:
        args["distributed_executor_backend"] = backend
    if app.fast_cold_start:
        args["additional_config"] = additional_config(app.cold_start)
    return extra.merged(args, engine.extra)


def additional_config(start: ColdStartConfig, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """vLLM's argument of this name: what our plugin reads there, beside what a user has given."""
    return {**(given or {}), extra.OUR_KEY: {"kv_update": start.kv_update.value, "trace_once": start.trace_once}}
