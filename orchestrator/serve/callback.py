"""The start that every replica of ours has, as a callback of Ray Serve LLM."""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
from omegaconf import OmegaConf
from ray import serve

from orchestrator import compat, config, models
from orchestrator.compat import table
from orchestrator.engine.arguments import additional_config
from orchestrator.engine.start import Start
from orchestrator.engine.start_report import StartReport
from orchestrator.engine.vllm import fork_context, serve_hook
from orchestrator.engine.vllm.supervisor import Supervisor
from orchestrator.errors import ConfigError
from orchestrator.fleet.multi_node import MultiNode
from orchestrator.fleet.plan import engine_spec
from orchestrator.graph_cache.client import GraphCacheClient
from orchestrator.graph_cache.folders import make_private
from orchestrator.graph_cache.kernel_caches import vllms_own_cache
from orchestrator.graph_cache.settings import cache_settings
from orchestrator.weights.arrival import Arrival
from orchestrator.weights.settings import Weights

CallbackBase: Any = compat.get(table.CALLBACK)
_WAITED_S = 10.0  # a slow machine's fork is here long before
SECTIONS = ("graph_cache", "cold_start", "engine", "cluster", "serve", "state_dir")


class FastColdStart(CallbackBase):
    """Restores compiled graphs before a replica's engine starts, and publishes them where it had to compile.

    ```python
    LLMConfig(
        model_loading_config={"model_id": "qwen", "model_source": "Qwen/Qwen3-8B"},
        callback_config={
            "callback_class": "orchestrator.serve.callback.FastColdStart",
            "callback_kwargs": {"graph_cache": {"store": "s3://bucket/graphs"}},
        },
    )
    ```

    Args:
        llm_config, raise_error_on_callback, ctx_kwargs: Ray's.
        model_files: a model that travels from node to node; see `Weights.plain`.
        settings: sections of our configuration, those of SECTIONS; what is left out has its default.

    Raises:
        ConfigError: a setting is not right.
    """

    def __init__(
        self,
        llm_config: Any,
        raise_error_on_callback: bool = True,
        ctx_kwargs: dict[str, Any] | None = None,
        *,
        model_files: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(llm_config, raise_error_on_callback, ctx_kwargs)
        self._weights = Weights.from_plain(model_files) if model_files else None
        self.app = _configuration(settings, llm_config.model_id)
        self.start: ReplicaStart | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Ray Serve pickles the configuration, and this with it, to look for handles; a start stays in its process."""
        return {**self.__dict__, "start": None}

    def started(self) -> ReplicaStart:
        """The start, once there is one.

        Raises:
            RuntimeError: Ray did not call this callback.
        """
        if self.start is None:
            raise RuntimeError("Ray Serve LLM made an engine without its callback.")
        return self.start

    async def on_before_node_init(self) -> None:
        """Before vLLM's configuration is made: its environment, and our plugin."""
        source = self.llm_config.get_engine_config().actual_hf_model_id
        if self._weights or Path(source).is_dir():
            self.ctx.run_init_node = False  # nothing to download; Ray would start a worker to find that out
        self.start = ReplicaStart(self.app, self.llm_config, source, self._weights)
        await asyncio.to_thread(self.start.configuration)
        self.start.enter()


class ReplicaStart:
    """One replica's start: what it is about, and how it went.

    Args:
        app: our configuration.
        llm_config: Ray's.
        model: what vLLM takes as `model`.
        weights: the model, if it travels from node to node.
    """

    def __init__(self, app: config.AppConfig, llm_config: Any, model: str, weights: Weights | None = None) -> None:
        self.name = _replica_name()
        self.model_id = str(llm_config.model_id)
        self._app, self._llm_config = app, llm_config
        start = app.cold_start
        share = start.share_graphs and not llm_config.engine_kwargs.get("enforce_eager", False)
        scratch = Path(tempfile.mkdtemp(prefix="orchestrator-serve-"))
        root = scratch / "cache" if share else vllms_own_cache()
        make_private(root)
        spec = engine_spec(
            app,
            replica=self.name,
            model=model,
            args={"tensor_parallel_size": llm_config.engine_kwargs.get("tensor_parallel_size", 1)},
            env={},
            scratch=str(scratch),
            cache_root=str(root),
            cpu=llm_config.accelerator_config is not None and llm_config.accelerator_config.kind == "cpu",
            forked=start.preload and fork_context.available(),
        )
        self.prestart_worker = spec.prestart_worker
        self._supervisor = Supervisor(spec, remove=str(scratch))
        events, settings = self._supervisor.events, cache_settings(app, share=share)
        cache, others = GraphCacheClient(settings, self.name, events), MultiNode(settings, root, events, weights)
        self._began = _launched()
        files = Arrival(weights, self.name, events) if weights else None
        self._start = Start(
            self.name, cache, events, root, began=self._began, others=others, files=files,
            size=lambda: models.size_of(model, llm_config.engine_kwargs),
        )  # fmt: skip

    def configuration(self) -> None:
        """Wait until the model's configuration is on this node; raises EngineStartError if it does not come."""
        self._supervisor.events.mark("process")
        self._start.configuration()

    def enter(self) -> None:
        """Prepare this process for vLLM."""
        self._supervisor.enter()
        self._supervisor.imported()
        given = self._llm_config.engine_kwargs.get("additional_config")
        self._llm_config.update_engine_kwargs(additional_config=additional_config(self._app.cold_start, given))
        serve_hook.install(self._supervisor, self._start)

    def progress(self) -> dict[str, Any]:
        """How far it is, what it has to bring up, and whether its graphs are there, for the status board.

        Raises:
            OSError: its events cannot be read.
        """
        size = self._start.size()
        return {
            "replica": self.name,
            "model": self.model_id,
            "phase": self._supervisor.phase(),
            "seconds": round(time.monotonic() - self._began, 1),
            "size": asdict(size) if size else None,
            "restored": self._start.restored,
        }

    def ready(self) -> StartReport:
        """The first token is there: the whole story."""
        self._start.first_token()
        return self._start.report()


def _configuration(settings: Mapping[str, Any], model_id: str) -> config.AppConfig:
    unknown = sorted(set(settings) - set(SECTIONS))
    if unknown:
        raise ConfigError(
            f"FastColdStart does not know {', '.join(unknown)}.",
            where=unknown[0],
            hint=f"It has {', '.join(SECTIONS)}.",
        )
    fixed = {"model": {"name": model_id, "id": model_id}, "workload": {"prompts": [""]}}
    return config.load(OmegaConf.create({**settings, **fixed}))


def _replica_name() -> str:
    replica = serve.get_replica_context().replica_id
    return f"{replica.deployment_id.name}#{replica.unique_id}".replace("/", "-")


def _launched() -> float:
    """When the raylet began to start this process, by the monotonic clock of this node; now, if it waited for its turn.

    The raylet tells the time of day, so the age of this process is taken once. A clock that was set meanwhile would
    make it negative, or more than the machine's own. A fork of the zygote gets here within a second; one that takes
    longer has waited (see `prestart`), and Ray does not say until when.
    """
    flag = "--worker-launch-time-ms="
    stamps = [int(a.removeprefix(flag)) / 1000 for a in sys.argv if a.startswith(flag)]
    now = time.monotonic()
    if fork_context.available() and time.time() - psutil.Process().create_time() > _WAITED_S:
        return now
    age = time.time() - stamps[0] if stamps else 0.0
    return now - age if 0.0 <= age < now else now
