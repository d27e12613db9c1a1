"""Can a model be compiled without its weights? vLLM then makes some up (`load_format=dummy`), and reads none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from orchestrator.config import EngineConfig, ModelConfig, ModelSource

# Formats whose weights reach a model as they are; others change its layers while they load.
_PLAIN = ("auto", "hf", "safetensors", "pt", "npcache", "dummy", "fastsafetensors", "instanttensor", "runai_streamer")
_QUANTISED = ("hf_quant_config.json", "quantize_config.json", "quant_config.json")


def why(model: ModelConfig, engine: EngineConfig) -> str:
    """Why graphs compiled without the model's weights might not be those of the model; "" where they are.

    Shapes and types come from the configuration. But where weights are quantised, scales and layouts come from the
    weights, and vLLM keeps some of them as numbers, which compiled code may hold.
    """
    extra = engine.extra
    if (method := extra.get("quantization")) is not None:
        return f"engine.extra.quantization={method}"
    if str(extra.get("kv_cache_dtype", "auto")).startswith("fp8"):
        return f"the scales of engine.extra.kv_cache_dtype={extra['kv_cache_dtype']} come from the weights"
    if (format_ := extra.get("load_format", "auto")) not in _PLAIN:
        return f"engine.extra.load_format={format_} changes layers while it loads"
    if extra.get("speculative_config"):
        return "a draft model may share the model's weights"
    if model.source is ModelSource.smollm2:
        return ""
    if model.source is ModelSource.tiny:
        return _quantised(dict(model.tiny), set())
    read = _of_hub(model) if model.source is ModelSource.hub else _of_folder(Path(model.id).expanduser())
    config = read("config.json")
    if config is None:
        return "its config.json cannot be read here"
    return _quantised(config, {name for name in _QUANTISED if read(name) is not None})


def _quantised(config: dict[str, Any], files: set[str]) -> str:
    parts = [config, *(part for part in config.values() if isinstance(part, dict))]  # text_config and its like
    if files or any(part.get("quantization_config") or part.get("compression_config") for part in parts):
        return f"its weights are quantised ({min(files, default='config.json')})"
    return ""


def _of_folder(folder: Path) -> Callable[[str], dict[str, Any] | None]:
    return lambda name: _json(folder / name)


def _of_hub(model: ModelConfig) -> Callable[[str], dict[str, Any] | None]:
    from huggingface_hub import hf_hub_download

    def read(name: str) -> dict[str, Any] | None:
        try:
            return _json(Path(hf_hub_download(model.id, name, revision=model.revision)))
        except Exception:  # not there, or no hub
            return None

    return read if not Path(model.id).is_dir() else _of_folder(Path(model.id))


def _json(file: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
