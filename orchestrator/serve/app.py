"""Configuration -> a Ray Serve application of one or several models."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

import ray
from omegaconf import OmegaConf
from ray import serve
from ray.serve.llm import LLMConfig, build_llm_deployment

from orchestrator import compat, config, models, zygote
from orchestrator.cluster import shape as shapes
from orchestrator.cluster.shape import ClusterShape, rank_resources
from orchestrator.compat import table
from orchestrator.config import AppConfig, EngineKind, sources
from orchestrator.engine.arguments import engine_args
from orchestrator.errors import ConfigError
from orchestrator.fleet import plan
from orchestrator.graph_cache import bundle
from orchestrator.progress import Say
from orchestrator.serve import autoscaling, controller, front, ingress
from orchestrator.serve.auth import read_keys
from orchestrator.serve.callback import SECTIONS
from orchestrator.serve.fake_server import FakeServer
from orchestrator.serve.model_cards import facts
from orchestrator.serve.server import Server
from orchestrator.serve.warm_ahead import Ahead
from orchestrator.weights.settings import Weights, weights_of

PRELOAD = "orchestrator.serve.zygote_imports"
FRONT_S = 15.0  # the ingress outlives the replicas, to say why a stream ended


def application(arguments: dict[str, Any]) -> Any:
    """For `import_path` in a Serve config file: `args: {overrides: [model=smollm2_135m, serve.max_replicas=2]}`.

    Raises:
        OrchestratorError: the configuration or a model is not right.
    """
    app = sources.composed(arguments.get("overrides", ()))
    there = front.running() if ray.is_initialized() else None
    if there is not None:  # the file's http_options decide, not ours
        app.serve.host, app.serve.port = there.host, there.port
    prepared = prepare(app, lambda who, what: None)
    return build(app, prepared.folders, weights=prepared.weights)


@dataclass(frozen=True)
class Prepared:
    """The models of a service.

    Attributes:
        folders: for each model's name what vLLM takes as `model`.
        weights: those that travel from node to node, by name.
    """

    folders: dict[str, str]
    weights: dict[str, Weights]


def prepare(app: AppConfig, say: Say) -> Prepared:
    """Check everything that can be wrong, and make the models' folders; Ray is not needed.

    Raises:
        OrchestratorError: the configuration or a model is not right.
    """
    read_keys(app.serve.api_keys_file, app.serve.host)
    if app.fast_cold_start and app.cold_start.share_graphs:
        bundle.signing_key(app.graph_cache.key_file)
    found = Prepared({}, {})
    for cell in cells(app):
        name = cell.model.name
        say("model", f"preparing {name}")
        if (weights := weights_of(cell)) is not None:
            if "$" in weights.bounds.folder:  # Ray Serve gives all nodes one path
                raise ConfigError(
                    f"A service has one path for all nodes, and weights.folder={weights.bounds.folder}.",
                    where="weights.folder",
                )
            found.weights[name] = weights
        found.folders[name] = weights.path if weights else models.resolve(cell.model, app.state_dir, cell.engine)
    return found


def check_room(app: AppConfig, shape: ClusterShape) -> None:
    """Is the cluster large enough for the least number of replicas of all models, and for one of each?

    Raises:
        ConfigError: it is not.
    """
    need = have = 0.0
    for cell in cells(app):
        cell.replicas = max(1, cell.serve.min_replicas)
        shapes.check_room(cell, shape)
        ((_, each),) = rank_resources(cell.engine).items()
        need += cell.serve.min_replicas * cell.engine.tensor_parallel_size * each
        have = shape.total(cell.engine.device)
    if need > have:
        raise ConfigError(
            f"The models' min_replicas need {need:g} {app.engine.device.value.upper()}s, the cluster has {have:g}.",
            where="serve.models",
            hint="Lower min_replicas; 0 starts a model at its first request.",
        )


def build(
    app: AppConfig,
    folders: dict[str, str],
    foreseen: Mapping[str, float] = MappingProxyType({}),
    weights: Mapping[str, Weights] = MappingProxyType({}),
) -> Any:
    """The application.

    Args:
        app: the checked configuration.
        folders: for each model's name what vLLM takes as `model`.
        foreseen: for models how long a start takes, in seconds; `serve.start_s` where that is not known.
        weights: models that travel from node to node.

    Returns:
        What `serve.run` takes.
    """
    keys = read_keys(app.serve.api_keys_file, app.serve.host)
    served = cells(app)
    for cell in served:
        cell.serve.start_s = foreseen.get(cell.model.name, cell.serve.start_s)
    llms = [llm_config(cell, folders[cell.model.name], weights.get(cell.model.name)) for cell in served]
    entrance = ingress.build(keys, app.serve.max_body_kib << 10)
    options: dict[str, Any] = {"num_cpus": 0, **_runtime_env(app)}
    return serve.deployment(
        entrance, name=controller.INGRESS, num_replicas=app.serve.ingress_replicas, max_ongoing_requests=10_000,
        ray_actor_options=options, graceful_shutdown_timeout_s=app.serve.drain_s + FRONT_S,
    ).bind(
        {llm.model_id: build_llm_deployment(llm, name_prefix="model:") for llm in llms},
        {llm.model_id: compat.get(table.METADATA)(llm.model_id, llm, facts(folders[llm.model_id])) for llm in llms},
        app=app,
        ahead=_ahead(app, weights.values()),
        sizes={cell.model.name: size(cell, folders[cell.model.name]) for cell in served},
        from_zero=any(cell.serve.min_replicas == 0 for cell in served),
    )  # fmt: skip


def cells(app: AppConfig) -> list[AppConfig]:
    """One configuration for each model that is served.

    Raises:
        ConfigError: a model has no file in conf/model, or its bounds contradict each other.
    """
    found = []
    for name, own in (app.serve.models or {"": config.ServeModelConfig()}).items():
        cell = deepcopy(app)
        where = f"serve.models.{name}" if name else "serve"
        if name:
            cell.model = sources.model(name, app.search_path)
        bounds = cell.serve
        bounds.min_replicas = bounds.min_replicas if own.min_replicas is None else own.min_replicas
        bounds.max_replicas = bounds.max_replicas if own.max_replicas is None else own.max_replicas
        bounds.frontend = bounds.frontend if own.frontend is None else own.frontend
        if bounds.min_replicas > bounds.max_replicas:
            raise ConfigError(
                f"{where}: min_replicas={bounds.min_replicas} is above max_replicas={bounds.max_replicas}.", where=where
            )
        found.append(cell)
    return found


def llm_config(app: AppConfig, folder: str, weights: Weights | None = None) -> LLMConfig:
    """One model as Ray Serve LLM wants it; stock's own server and callback without `fast_cold_start`."""
    engine, served = app.engine, app.serve
    arguments = {name: value for name, value in engine_args(app).items() if name != "served_model_name"}
    ours: dict[str, Any] = {}
    if engine.kind is EngineKind.fake:
        ours["server_cls"] = FakeServer
        ours["experimental_configs"] = {name: arguments.pop(name) for name in engine.extra}  # not vLLM's: Ray looks
    elif app.fast_cold_start:
        plain = OmegaConf.to_container(OmegaConf.structured(app), resolve=True, enum_to_str=True)
        settings = {name: plain[name] for name in SECTIONS}  # type: ignore[index, call-overload]
        if weights:
            settings["model_files"] = weights.plain()
        ours["server_cls"] = Server
        ours["callback_config"] = {
            "callback_class": "orchestrator.serve.callback.FastColdStart",
            "callback_kwargs": settings,
        }
    return LLMConfig(
        model_loading_config={"model_id": app.model.name, "model_source": folder},
        engine_kwargs={**arguments, **served.frontend},
        accelerator_config={"kind": engine.device.value},
        placement_group_config={
            "bundles": [rank_resources(engine)] * engine.tensor_parallel_size,
            "strategy": app.cluster.placement_strategy,
        },
        deployment_config={
            "autoscaling_config": autoscaling.settings(served),
            "health_check_period_s": served.health_period_s,
            "health_check_timeout_s": served.health_timeout_s + 5.0,
            "graceful_shutdown_timeout_s": served.drain_s,
            "ray_actor_options": {"num_cpus": 0},
        },
        runtime_env={"env_vars": plan.environment(app), **_runtime_env(app).get("runtime_env", {})},
        **ours,
    )


def size(cell: AppConfig, folder: str) -> dict[str, int] | None:
    """What a start of a model has to bring up: fields of `Size`; None: not known."""
    found = models.size_of(folder, engine_args(cell))
    return asdict(found) if found else None


def _ahead(app: AppConfig, weights: Iterable[Weights]) -> Ahead | None:
    if not _forks(app) or not app.cold_start.prefetch_nodes:
        return None
    return Ahead(app, sum(cell.serve.max_replicas for cell in cells(app)), PRELOAD, weights)


def _runtime_env(app: AppConfig) -> dict[str, Any]:
    if not _forks(app):
        return {}
    return {"runtime_env": {"py_executable": zygote.py_executable(sys.executable, PRELOAD)}}


def _forks(app: AppConfig) -> bool:
    return app.fast_cold_start and app.cold_start.preload
