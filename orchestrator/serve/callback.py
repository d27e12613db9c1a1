"""The start that every replica of ours has, as a callback of Ray Serve LLM."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from ray import serve
from ray.llm._internal.common.callbacks.base import CallbackBase

from orchestrator import config, timeline
from orchestrator.engine import EngineSpec
from orchestrator.engine.arguments import additional_config
from orchestrator.engine.vllm import fork_context, serve_hook
from orchestrator.engine.vllm.supervisor import Surroundings
from orchestrator.errors import ConfigError
from orchestrator.fleet.replica import StartReport
from orchestrator.graph_cache.client import GraphCacheClient
from orchestrator.graph_cache.restore_result import Outcome, Receipt
from orchestrator.graph_cache.settings import cache_settings

logger = logging.getLogger("ray.serve")
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
        settings: sections of our configuration, those of SECTIONS; what is left out has its default.

    Raises:
        ConfigError: a setting is not right.
    """

    def __init__(
        self,
        llm_config: Any,
        raise_error_on_callback: bool = True,
        ctx_kwargs: dict[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(llm_config, raise_error_on_callback, ctx_kwargs)
        self.app = _configuration(settings, llm_config.model_id)
        self.start: ReplicaStart | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Ray Serve pickles the configuration, and this with it, to look for handles; a start stays in its process."""
        return {**self.__dict__, "start": None}

    async def on_before_node_init(self) -> None:
        """Before vLLM's configuration is made: its environment, and our plugin."""
        source = self.llm_config.get_engine_config().actual_hf_model_id
        if Path(source).is_dir():
            self.ctx.run_init_node = False  # nothing to download; Ray would start a worker to find that out
        self.start = ReplicaStart(self.app, self.llm_config, source)
        self.start.enter()


class ReplicaStart:
    """One replica's start: what it is about, and how it went.

    Args:
        app: our configuration.
        llm_config: Ray's.
        model: what vLLM takes as `model`.
    """

    def __init__(self, app: config.AppConfig, llm_config: Any, model: str) -> None:
        self.name = _replica_name()
        self.model_id = str(llm_config.model_id)
        self._app, self._llm_config = app, llm_config
        self._scratch = Path(tempfile.mkdtemp(prefix="orchestrator-serve-"))
        start = app.cold_start
        forked = start.preload and fork_context.available()
        spec = EngineSpec(
            replica=self.name,
            model=model,
            args={"tensor_parallel_size": llm_config.engine_kwargs.get("tensor_parallel_size", 1)},
            env={},
            scratch=str(self._scratch),
            cache_root=str(self._scratch / "cache"),
            start_timeout_s=app.engine.start_timeout_s,
            cpu=llm_config.accelerator_config is not None and llm_config.accelerator_config.kind == "cpu",
            preload=forked,
            quick_cpu_probe=forked and start.quick_cpu_probe,
            short_profile=forked and start.short_profile,
        )
        Path(spec.cache_root).mkdir(mode=0o700)
        self._around = Surroundings(spec)
        share = start.share_graphs and not llm_config.engine_kwargs.get("enforce_eager", False)
        self._cache = GraphCacheClient(cache_settings(app, share=share), self.name, self._around.events)
        self._receipt = Receipt(Outcome.stock)
        self._facts = timeline.EngineFacts()

    def enter(self) -> None:
        """Prepare this process for vLLM."""
        self._around.events.mark("process")
        self._around.enter()
        self._around.imported()
        given = self._llm_config.engine_kwargs.get("additional_config")
        self._llm_config.update_engine_kwargs(additional_config=additional_config(self._app.cold_start, given))
        serve_hook.install(self._around, self)

    def restore(self, factors: Callable[[], Mapping[str, str]]) -> bool:
        """See shared_llm.GraphCache."""
        try:
            known = factors()
        except Exception as error:  # a replica without a GPU of its own cannot ask for its capability
            self._receipt = Receipt(Outcome.failed, f"no compile key: {type(error).__name__}: {error}"[:300])
            return False
        self._receipt = self._cache.restore(known, Path(self._around.spec.cache_root))
        return self._receipt.restored

    def settle(self, facts: timeline.EngineFacts) -> None:
        """See shared_llm.GraphCache. Reports how the start went, up to here."""
        self._facts = facts
        self._receipt = self._cache.settle(self._receipt, facts, Path(self._around.spec.cache_root))
        logger.info(
            "%s: graph cache %s%s", self.name, self._receipt.outcome.value,
            f" ({self._receipt.reason})" if self._receipt.reason else "",
        )  # fmt: skip

    def give_up(self) -> None:
        """See shared_llm.GraphCache."""
        self._cache.give_up(self._receipt)

    def ready(self) -> StartReport:
        """The first token is there: the whole story."""
        self._around.events.mark("first token")
        phases = timeline.phases(self._around.events.read(), _launched())
        whole = phases[-1].start + phases[-1].seconds
        return StartReport(self.name, whole, self._receipt, self._facts, tuple(phases), os.getpid())


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
    """When the raylet began to start this process, in seconds since the epoch."""
    flag = "--worker-launch-time-ms="
    stamps = [int(a.removeprefix(flag)) / 1000 for a in sys.argv if a.startswith(flag)]
    return stamps[0] if stamps else time.time()
