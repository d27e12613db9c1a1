"""What ours is compared with: stock vLLM as it comes, and stock vLLM as it is on a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from types import MappingProxyType
from typing import Any

from orchestrator.config import AppConfig, Device, KvUpdate

FORK = ("preload", "quick_cpu_probe", "short_profile", "overlap", "prestart_worker")
# On a GPU vLLM compiles in pieces, and loads its own artifacts. On CPU it does neither unless our plugin lets it:
# nothing else of ours is on.
_AS_ON_GPUS: dict[str, Any] = {
    "kv_update": KvUpdate.layer_name,
    "trace_once": False,
    "share_graphs": False,
    **dict.fromkeys(FORK, False),
}


# way -> settings of `cold_start`; None: not even the plugin is there
WAYS: Mapping[str, Mapping[str, Any] | None] = MappingProxyType(
    {"stock": None, "stock_gpu_like": _AS_ON_GPUS, "ours": {}}
)


def ways(app: AppConfig) -> list[str]:
    """Those that a benchmark sets side by side; on GPUs stock is as on GPUs."""
    return [way for way in WAYS if way != "stock_gpu_like" or app.engine.device is Device.cpu]


def cell(app: AppConfig, way: str, off: tuple[str, ...] = ()) -> AppConfig:
    """The configuration for a way to start.

    Args:
        app: the benchmark's.
        way: of WAYS.
        off: further levers of `cold_start` that are off.
    """
    made, settings = deepcopy(app), WAYS[way]
    made.fast_cold_start = settings is not None
    for name, value in {**(settings or {}), **dict.fromkeys(off, False)}.items():
        setattr(made.cold_start, name, value)
    return made
