"""Reads the plugin's settings out of a VllmConfig; everything else in the plugin asks here."""

from __future__ import annotations

import logging
from typing import Any

NAME = "orchestrator"
KV_UPDATE_MODES = ("layer_index", "layer_name", "split", "inline")
logger = logging.getLogger(f"vllm.{NAME}")  # below "vllm", so that vLLM's own handlers print it


def kv_update_mode(vllm_config: Any) -> str | None:
    """The engine's `kv_update` mode, or None where the plugin was not asked for.

    Raises:
        ValueError: the configuration names a mode or a setting that does not exist.
    """
    additional = getattr(vllm_config, "additional_config", None)
    settings = additional.get(NAME) if isinstance(additional, dict) else None
    if settings is None:
        return None
    unknown = set(settings) - {"kv_update"}
    mode = settings.get("kv_update")
    if unknown or mode not in KV_UPDATE_MODES:
        raise ValueError(
            f'additional_config["{NAME}"]={settings!r}: kv_update has to be one of {", ".join(KV_UPDATE_MODES)}, '
            "and there is no other setting."
        )
    return str(mode)
