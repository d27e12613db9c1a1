"""Can a model be compiled without its weights? vLLM then makes some up (`load_format=dummy`), and reads none."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from orchestrator.config import EngineConfig, ModelConfig, ModelSource
from orchestrator.config.load_formats import FORMATS

_QUANTISED = ("hf_quant_config.json", "quantize_config.json", "quant_config.json")


def why(model: ModelConfig, engine: EngineConfig) -> str:
    """Why graphs compiled without the model's weights might not be those of the model; "" where they are.

    Shapes and types come from the configuration. But where weights are quantised, scales and layouts come from the
    weights, and vLLM keeps some of them as numbers, which compiled code may hold.
    """
    if reason := _by_settings(engine):
        return reason
    if model.source in (ModelSource.tiny, ModelSource.smollm2):  # made here
        return _quantised(model.tiny, set())
    config = _read(model, "config.json")
    if config is None:
        return "its config.json cannot be read here"
    return _quantised(config, {name for name in _QUANTISED if _read(model, name) is not None})


def why_by(config: dict[str, Any], files: Iterable[str], engine: EngineConfig) -> str:
    """The same for a model that is elsewhere.

    Args:
        config: what is in its config.json.
        files: the names of its files.
        engine: what is to run it.
    """
    return _by_settings(engine) or _quantised(config, set(_QUANTISED) & set(files))


def _by_settings(engine: EngineConfig) -> str:
    extra = engine.extra
    if (method := extra.get("quantization")) is not None:
        return f"engine.extra.quantization={method}"
    if str(extra.get("kv_cache_dtype", "auto")).startswith("fp8"):
        return f"the scales of engine.extra.kv_cache_dtype={extra['kv_cache_dtype']} come from the weights"
    known = FORMATS.get(engine.load_format)
    if known is None or not known.plain:
        return f"engine.load_format={engine.load_format} may change layers while it loads"
    if extra.get("speculative_config"):
        return "a draft model may share the model's weights"
    return ""


def _quantised(config: dict[str, Any], files: set[str]) -> str:
    parts = [config, *(part for part in config.values() if isinstance(part, dict))]  # text_config and its like
    if files or any(part.get("quantization_config") or part.get("compression_config") for part in parts):
        return f"its weights are quantised ({min(files, default='config.json')})"
    return ""


def _read(model: ModelConfig, name: str) -> dict[str, Any] | None:
    """A JSON file of a model's folder or of the hub; None: it is not there, or there is no hub."""
    from huggingface_hub import hf_hub_download

    file = Path(model.id).expanduser() / name
    try:
        if model.source is ModelSource.hub and not file.parent.is_dir():
            file = Path(hf_hub_download(model.id, name, revision=model.revision))
        found = json.loads(file.read_bytes())
    except Exception:
        return None
    return found if isinstance(found, dict) else None
