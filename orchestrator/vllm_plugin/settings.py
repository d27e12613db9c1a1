"""Reads the plugin's settings out of a VllmConfig; everything else in the plugin asks here."""

from __future__ import annotations

import logging
from typing import Any

NAME = "orchestrator"
KERNELS_USED = "ORCHESTRATOR_KERNELS_USED"  # a variable: the folder in which triton_cache.py notes what was asked for
KV_UPDATE_MODES = ("layer_index", "layer_name", "split", "inline")
logger = logging.getLogger(f"vllm.{NAME}")  # below "vllm", so that vLLM's own handlers print it


def kv_update_mode(vllm_config: Any) -> str | None:
    """The engine's `kv_update` mode, or None where the plugin was not asked for.

    Raises:
        ValueError: the configuration names a mode or a setting that does not exist.
    """
    settings = _settings(vllm_config)
    return None if settings is None else str(settings["kv_update"])


def trace_once(vllm_config: Any) -> bool:
    """Are repeated layers traced once? On where the plugin was asked for, unless `trace_once` says no."""
    settings = _settings(vllm_config)
    return settings is not None and bool(settings.get("trace_once", True))


def _settings(vllm_config: Any) -> dict[str, Any] | None:
    additional = getattr(vllm_config, "additional_config", None)
    settings: dict[str, Any] | None = additional.get(NAME) if isinstance(additional, dict) else None
    if settings is None:
        return None
    known = isinstance(settings, dict) and not set(settings) - {"kv_update", "trace_once"}
    if not known or settings.get("kv_update") not in KV_UPDATE_MODES:
        raise ValueError(
            f'additional_config["{NAME}"]={settings!r}: kv_update has to be one of {", ".join(KV_UPDATE_MODES)}; '
            "besides, there is only trace_once (true or false)."
        )
    return settings
