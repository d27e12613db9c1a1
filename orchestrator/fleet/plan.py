"""Configuration + cluster shape -> a frozen Plan. Nothing here starts or reads anything."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from orchestrator.cluster.shape import ClusterShape, check_room, rank_resources
from orchestrator.config import AppConfig, Device, EngineKind, ModelSource
from orchestrator.engine.arguments import engine_args
from orchestrator.engine.contract import EngineSpec


@dataclass(frozen=True)
class ReplicaPlan:
    """One replica: its engine, and the placement group that holds it.

    The actor takes the first bundle whole. A replica that fits one node has one bundle and vLLM's multiprocessing
    executor; one that does not has a bundle per rank and vLLM's Ray executor.
    """

    name: str
    spec: EngineSpec
    kind: EngineKind
    bundles: tuple[Mapping[str, float], ...]
    strategy: str
    tensor_parallel_size: int


@dataclass(frozen=True)
class Plan:
    """Everything that is decided before something starts."""

    replicas: tuple[ReplicaPlan, ...]
    share_graphs: bool
    warnings: tuple[str, ...] = field(default=())


def make_plan(app: AppConfig, shape: ClusterShape, *, model: str, scratch: str) -> Plan:
    """Decide processes, devices, environment and vLLM arguments.

    Args:
        app: the checked configuration.
        shape: the cluster.
        model: what vLLM takes as `model`.
        scratch: the run's scratch folder; each replica has one of its own below it.

    Raises:
        ConfigError: the cluster is too small.
    """
    check_room(app, shape)
    bundles, backend = _placement(app, shape)
    stock = not app.fast_cold_start
    share = not stock and app.cold_start.share_graphs and not app.engine.enforce_eager
    replicas = []
    for i in range(app.replicas):
        name = f"replica-{i}"
        folder = f"{scratch}/{name}-{secrets.token_hex(4)}"  # what is removed late is nobody else's
        spec = engine_spec(
            app,
            replica=name,
            model=model,
            args=engine_args(app, backend),
            env=environment(app),
            scratch=folder,
            # without our sharing a node's replicas have one folder, as by vLLM's own default; it starts out empty
            cache_root=f"{folder}/cache" if share else f"{scratch}/vllm-cache",
            cpu=app.engine.device is Device.cpu,
            forked=not stock and app.cold_start.preload and app.engine.kind is EngineKind.vllm,
        )
        replicas.append(
            ReplicaPlan(name, spec, app.engine.kind, bundles, _strategy(app, bundles), app.engine.tensor_parallel_size)
        )
    return Plan(tuple(replicas), share, _warnings(app))


def engine_spec(
    app: AppConfig,
    *,
    replica: str,
    model: str,
    args: Mapping[str, Any],
    env: Mapping[str, str],
    scratch: str,
    cache_root: str,
    cpu: bool,
    forked: bool,
) -> EngineSpec:
    """What an engine of a replica needs to start; for the arguments see EngineSpec."""
    return EngineSpec(
        replica=replica,
        model=model,
        args=MappingProxyType(dict(args)),
        env=MappingProxyType(dict(env)),
        scratch=scratch,
        cache_root=cache_root,
        start_timeout_s=app.engine.start_timeout_s,
        stock=not app.fast_cold_start,
        chat=app.model.chat,
        cpu=cpu,
        preload=forked,
        quick_cpu_probe=forked and app.cold_start.quick_cpu_probe,
        short_profile=forked and app.cold_start.short_profile,
        overlap=forked and app.cold_start.overlap,
        prestart_worker=forked and app.cold_start.prestart_worker,
        share_kernels=app.cold_start.share_graphs and app.cold_start.share_kernels,
    )


def _placement(app: AppConfig, shape: ClusterShape) -> tuple[tuple[Mapping[str, float], ...], str | None]:
    device, size = app.engine.device, app.engine.tensor_parallel_size
    ((resource, each),) = rank_resources(app.engine).items()
    if size * each <= shape.largest(device):
        return (MappingProxyType({resource: size * each}),), "mp" if size > 1 else None
    return tuple(MappingProxyType({resource: each}) for _ in range(size)), "ray"


def _strategy(app: AppConfig, bundles: tuple[Mapping[str, float], ...]) -> str:
    return app.cluster.placement_strategy if len(bundles) > 1 else "PACK"


def environment(app: AppConfig) -> dict[str, str]:
    """Environment variables that have to be there before vLLM is imported."""
    found = {}
    if app.model.source is not ModelSource.hub:
        found["HF_HUB_OFFLINE"] = "1"  # nothing to ask the hub for
    if not app.fast_cold_start:
        found["VLLM_PLUGINS"] = ""  # vLLM then loads no plugin, ours included
    return found


def _warnings(app: AppConfig) -> tuple[str, ...]:
    if app.engine.enforce_eager and app.fast_cold_start:
        return ("engine.enforce_eager=true compiles nothing, so fast_cold_start has nothing to share.",)
    return ()
