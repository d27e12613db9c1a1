"""`engine.extra`: which of vLLM's arguments a user may give there, and which setting gives each of the others."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from orchestrator.config import vllm_arguments
from orchestrator.config.enums import EngineKind
from orchestrator.errors import ConfigError

OUR_KEY = "orchestrator"  # of additional_config
# What we give vLLM ourselves -> the setting that decides it.
SETTINGS = {
    "model": "model.id",
    "served_model_name": "model.name",
    "revision": "model.revision",
    "dtype": "model.dtype",
    "max_model_len": "model.max_model_len",
    "trust_remote_code": "model.trust_remote_code",
    "tensor_parallel_size": "engine.tensor_parallel_size",
    "max_num_seqs": "engine.max_num_seqs",
    "max_num_batched_tokens": "engine.max_num_batched_tokens",
    "kv_cache_memory_bytes": "engine.kv_cache_gib",
    "gpu_memory_utilization": "engine.gpu_memory_utilization",
    "enforce_eager": "engine.enforce_eager",
    "enable_prefix_caching": "engine.enable_prefix_caching",
    "seed": "engine.seed",
    "load_format": "engine.load_format",
}
# Other ways to spread one engine over devices: for these no room would be kept.
_SPREAD = (
    "pipeline_parallel_size",
    "data_parallel_size",
    "data_parallel_size_local",
    "decode_context_parallel_size",
    "prefill_context_parallel_size",
    "nnodes",
)
_MAPPINGS = ("additional_config", "compilation_config")


def check(app: Any) -> None:
    """Check `engine.extra` and `serve.frontend` against what we set ourselves, and their names against vLLM's, where
    vLLM is installed.

    Raises:
        ConfigError: an argument is set elsewhere, cannot be placed, or does not exist.
    """
    given = app.engine.extra
    for name, value in given.items():
        _check_one(app, f"engine.extra.{name}", name, value)
    if given and app.engine.kind is EngineKind.vllm:
        vllm_arguments.check("engine.extra", given, vllm_arguments.engine())
    each = {f"serve.models.{name}.frontend": own.frontend or {} for name, own in app.serve.models.items()}
    for where, asked in {"serve.frontend": app.serve.frontend, **each}.items():
        if "lora_modules" in asked:
            raise ConfigError(f"{where}.lora_modules: this service has no adapters.", where=f"{where}.lora_modules")
        if asked:  # vLLM's sources are not read for nothing
            vllm_arguments.check(where, asked, vllm_arguments.frontend())


def merged(ours: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """Our arguments and the user's, which are checked; arguments that are mappings are merged, ours over theirs."""
    found = {**extra, **{name: mapping(name, extra[name]) for name in _MAPPINGS if name in extra}}
    both = {k: {**found[k], **v} for k, v in ours.items() if isinstance(v, Mapping) and isinstance(found.get(k), dict)}
    return {**ours, **found, **both}


def mapping(name: str, value: Any) -> dict[str, Any]:
    """An argument of vLLM's that is a mapping, given as one or as JSON.

    Raises:
        ConfigError: it is neither.
    """
    found = value
    if isinstance(value, str):
        try:
            found = json.loads(value)
        except ValueError:
            found = None
    if found is None and value is None:
        return {}
    if not isinstance(found, Mapping):
        raise ConfigError(
            f"engine.extra.{name}={value!r} is no mapping.",
            where=f"engine.extra.{name}",
            hint=f"For example +engine.extra.{name}={{key: value}}.",
        )
    return dict(found)


def _check_one(app: Any, where: str, name: str, value: Any) -> None:
    if name in vllm_arguments.frontend():
        raise ConfigError(
            f"{where} is for a service's front.", where=where, hint=f"Set +serve.frontend.{name}={_shown(value)}."
        )
    if name in SETTINGS:
        setting = SETTINGS[name]
        same = setting.endswith(f".{name}")
        raise ConfigError(
            f"{where} is what {setting} sets.", where=where, hint=f"Set {setting}{f'={_shown(value)}' if same else ''}."
        )
    if name == "distributed_executor_backend":
        raise ConfigError(
            f"{where} follows from placement.", where=where, hint="It is mp on one node, ray on several; leave it out."
        )
    if name in _SPREAD and value not in (None, 1):
        raise ConfigError(
            f"{where}={_shown(value)}: a replica is placed by its tensor-parallel ranks alone.",
            where=where,
            hint="Set engine.tensor_parallel_size, or replicas.",
        )
    if name in _MAPPINGS:
        inner = mapping(name, value)
        if name == "additional_config" and OUR_KEY in inner:
            raise ConfigError(
                f"{where}.{OUR_KEY} is what cold_start sets.",
                where=where,
                hint="Set cold_start.kv_update and cold_start.trace_once.",
            )
        if name == "compilation_config" and "cache_dir" in inner and app.fast_cold_start:
            raise ConfigError(
                f"{where}.cache_dir would keep graphs where no other replica finds them.",
                where=where,
                hint="Set graph_cache.store, or fast_cold_start=false.",
            )


def _shown(value: Any) -> str:
    """As it is written on the command line."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
