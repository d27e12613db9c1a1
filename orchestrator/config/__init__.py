"""What a user may set: Hydra's schema, and the checks that need no cluster."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from orchestrator import paths
from orchestrator.compat import versions
from orchestrator.config import bounds, extra, load_formats
from orchestrator.config.enums import (
    Autoscaling,
    BatchEngine,
    BenchKind,
    ClusterKind,
    Device,
    EngineKind,
    KvUpdate,
    ModelSource,
    ProxyLocation,
)
from orchestrator.config.groups import (
    BatchConfig,
    BenchConfig,
    ClusterConfig,
    ColdStartConfig,
    EngineConfig,
    GraphCacheConfig,
    ModelConfig,
    ServeConfig,
    ServeModelConfig,
    SuiteEntry,
    SweepConfig,
    WarmConfig,
    WeightsConfig,
    WorkloadConfig,
)
from orchestrator.errors import ConfigError

_PACKAGE = Path(__file__).resolve().parents[1]
CONF = next(p for p in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if p.is_dir())  # of a wheel, of a checkout

__all__ = [
    "CONF",
    "AppConfig",
    "Autoscaling",
    "BatchConfig",
    "BatchEngine",
    "BenchConfig",
    "BenchKind",
    "ClusterConfig",
    "ClusterKind",
    "ColdStartConfig",
    "Device",
    "EngineConfig",
    "EngineKind",
    "GraphCacheConfig",
    "KvUpdate",
    "ModelConfig",
    "ModelSource",
    "ProxyLocation",
    "ServeConfig",
    "ServeModelConfig",
    "SuiteEntry",
    "SweepConfig",
    "WarmConfig",
    "WeightsConfig",
    "WorkloadConfig",
    "load",
    "places",
]


@dataclass
class AppConfig:
    """The whole configuration of a run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    cold_start: ColdStartConfig = field(default_factory=ColdStartConfig)
    graph_cache: GraphCacheConfig = field(default_factory=GraphCacheConfig)
    weights: WeightsConfig = field(default_factory=WeightsConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    workload: WorkloadConfig = field(default_factory=WorkloadConfig)
    bench: BenchConfig = field(default_factory=BenchConfig)
    serve: ServeConfig = field(default_factory=ServeConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)
    warm: WarmConfig = field(default_factory=WarmConfig)
    upload: str | None = None  # folder or URI that a job's outputs are copied to when it ends, well or not
    fast_cold_start: bool = True
    replicas: int = 2
    state_dir: str = "${orchestrator_home:}"
    search_path: list[str] = field(default_factory=list)  # filled in by `load`: the user's own folders like conf/


# Settings that say where files are. graph_cache.node_folder and weights.folder are not among them: each node reads
# its own `~` in them.
_PATHS = (
    "state_dir", "upload", "graph_cache.store", "graph_cache.key_file", "batch.input", "batch.output",
    "serve.api_keys_file",
)  # fmt: skip

OmegaConf.register_new_resolver("orchestrator_home", paths.home, replace=True)
ConfigStore.instance().store(name="schema", node=AppConfig)


def places(app: AppConfig) -> dict[str, str]:
    """Where files are -> the setting that says so; see `paths.refusal`."""
    found = {}
    for name in reversed(_PATHS):
        holder, last = _holder(app, name)
        if (path := getattr(holder, last)) and "://" not in path:
            found[os.path.abspath(path)] = name
    return found


def _holder(app: AppConfig, name: str) -> tuple[Any, str]:
    group, _, last = name.rpartition(".")
    return getattr(app, group) if group else app, last


def of_hydra(error: Exception) -> ConfigError:
    """What Hydra or OmegaConf says is wrong, in a line, with the setting that it names."""
    return ConfigError(" ".join(str(error).split()), where=getattr(error, "full_key", "") or "")


def load(cfg: Any, search_path: Sequence[str] = ()) -> AppConfig:
    """Turn a composed DictConfig into typed dataclasses and check every bound.

    Args:
        cfg: the configuration.
        search_path: where it came from, besides our conf/; see `sources`.

    Raises:
        ConfigError: a value is missing, of the wrong type or out of bounds; `where` names the setting.
    """
    try:
        app = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(AppConfig), cfg))
    except Exception as error:
        raise of_hydra(error) from error
    if not isinstance(app, AppConfig):
        raise ConfigError("The configuration is not a mapping of the known groups.", where="")
    if app.search_path:
        raise ConfigError(
            "search_path is no setting.", where="search_path", hint="Use --config-dir, or hydra.searchpath."
        )
    app.search_path = list(search_path)
    for name in _PATHS:
        holder, last = _holder(app, name)
        if path := getattr(holder, last):
            setattr(holder, last, paths.expanded(path))
    bounds.check(app)
    extra.check(app)
    load_formats.check(app)
    if app.fast_cold_start and app.engine.kind is EngineKind.vllm and (version := versions.unfit()):
        raise ConfigError(
            f"This environment has vLLM {version}, and fast_cold_start works with vLLM {versions.span()}.",
            where="fast_cold_start",
            hint="Install one of these, or set fast_cold_start=false.",
        )
    if app.model.source in (ModelSource.path, ModelSource.hub) and not app.model.id:
        raise ConfigError("model.id is empty.", where="model.id", hint="Give a folder or a hub id.")
    if app.model.source is ModelSource.tiny and "model_type" not in app.model.tiny:
        raise ConfigError("model.tiny needs a model_type.", where="model.tiny", hint="For example llama.")
    return app
