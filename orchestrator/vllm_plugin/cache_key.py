"""vLLM's compile key without what only says where a replica runs.

Replicas on other hosts, ports, bundles, cores or home folders compile the same code, so they have to look for it under
the same name. vLLM leaves out most of that by itself; this takes the rest out of its factors, for engines that asked
for the plugin. What changes code stays: a model folder counts by its config.json instead of its path.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orchestrator import compat
from orchestrator.compat import table
from orchestrator.vllm_plugin.settings import kv_update_mode

# Where a process runs, whom it talks to and where it writes; none of it reaches compiled code.
PLACEMENT_ONLY = frozenset(
    {
        "VLLM_CPU_OMP_THREADS_BIND", "VLLM_CPU_NUM_OF_RESERVED_CPU", "VLLM_LOOPBACK_IP", "VLLM_DP_RANK",
        "VLLM_DP_RANK_LOCAL", "VLLM_RAY_BUNDLE_INDICES", "VLLM_RAY_PER_WORKER_GPUS", "VLLM_RAY_DP_PACK_STRATEGY",
        "VLLM_PROCESS_NAME_PREFIX", "VLLM_TORCH_PROFILER_DIR", "VLLM_LORA_RESOLVER_CACHE_DIR",
        "VLLM_NIXL_SIDE_CHANNEL_PORT", "VLLM_ENGINE_READY_TIMEOUT_S", "VLLM_RPC_TIMEOUT", "VLLM_PLUGINS",
    }
)  # fmt: skip


def install() -> None:
    """Wrap `aot_compile_hash_factors`, which names an artifact's folder."""
    compat.patch(table.AOT_FACTORS, _placeless)


def _placeless(original: Callable[[Any], list[str]]) -> Callable[[Any], list[str]]:
    def aot_compile_hash_factors(vllm_config: Any) -> list[str]:
        if kv_update_mode(vllm_config) is None:
            return original(vllm_config)
        with compat.replaced(table.ENV_FACTORS, _without_placement), _folder_left_out(vllm_config.model_config):
            return [*original(vllm_config), *_device(vllm_config)]

    return aot_compile_hash_factors


def _device(vllm_config: Any) -> list[str]:
    """A worker's device, unless it is the rank that names the artifact's file anyway.

    Inductor bakes the index into its code. vLLM's Ray executor leaves all of a node's GPUs visible, and any of them may
    be a rank's: then the artifact has a name of its own, and who has another device compiles again.
    """
    import torch

    if not torch.cuda.is_initialized():
        return []
    device = torch.cuda.current_device()
    return [] if device == vllm_config.parallel_config.rank else [f"device {device}"]


def _without_placement(factors: Callable[[], dict[str, object]]) -> Callable[[], dict[str, object]]:
    return lambda: {name: value for name, value in factors().items() if name not in PLACEMENT_ONLY}


@contextmanager
def _folder_left_out(model: Any) -> Iterator[None]:
    """A model folder counts by its `config.json`. There is no model where a single module is compiled by itself."""
    if model is None:
        yield
        return
    before = dict(model.__dict__)
    try:
        if (config := Path(model.model) / "config.json").is_file():
            model.__dict__["model"] = hashlib.sha256(config.read_bytes()).hexdigest()  # past pydantic's validation
        with _nameless({id(c): c for c in (model.hf_config, model.hf_text_config)}.values()):
            yield
    finally:
        model.__dict__.update(before)


@contextmanager
def _nameless(configs: Any) -> Iterator[None]:
    """transformers keeps the folder that a config came from in the config itself."""
    names = [(config, config.__dict__.get("_name_or_path")) for config in configs]
    try:
        for config, _ in names:
            config.__dict__["_name_or_path"] = ""
        yield
    finally:
        for config, name in names:
            config.__dict__["_name_or_path"] = name
