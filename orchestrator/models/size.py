"""What a start of a model has to bring up, for the forecast of how long it takes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.models.folder import WEIGHTS
from orchestrator.timeline.forecast import Size

_LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")


def size_of(model: str, arguments: Mapping[str, Any]) -> Size | None:
    """The size of a model; None where it cannot be known here: it is not in the hub's cache, or names no layers.

    Args:
        model: a folder or a hub id.
        arguments: vLLM's, as far as they are given.
    """
    try:
        folder = _folder(model, arguments.get("revision"))
        config = json.loads((folder / "config.json").read_bytes())
        text = {**config, **(config.get("text_config") or {})}
        layers = next(int(text[name]) for name in _LAYERS if name in text)
        made_up = arguments.get("load_format") == "dummy"
        files = next((found for pattern in WEIGHTS if (found := list(folder.glob(pattern)))), [])
        held = 0 if made_up else sum(file.stat().st_size for file in files)
    except Exception:  # a forecast is not worth a start
        return None
    ranks = int(arguments.get("tensor_parallel_size", 1)) * int(arguments.get("pipeline_parallel_size", 1))
    return Size(layers, held, ranks)


def _folder(model: str, revision: str | None) -> Path:
    """Raises TypeError where the hub's cache has not got it."""
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import try_to_load_from_cache

    return Path(try_to_load_from_cache(model, "config.json", revision=revision)).parent  # type: ignore[arg-type]
