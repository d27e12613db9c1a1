"""A replica: restore graphs -> start the engine -> first token -> publish graphs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator import models, timeline
from orchestrator.cluster import prestart
from orchestrator.engine import Chunk, Engine, Sampling, create
from orchestrator.engine.contract import CompileKey
from orchestrator.engine.start import Start
from orchestrator.engine.start_report import StartReport
from orchestrator.engine.vllm import reaper
from orchestrator.fleet.multi_node import MultiNode
from orchestrator.fleet.plan import ReplicaPlan
from orchestrator.graph_cache.client import GraphCacheClient
from orchestrator.graph_cache.folders import make_private
from orchestrator.graph_cache.settings import CacheSettings
from orchestrator.weights.arrival import Arrival
from orchestrator.weights.settings import Weights

_PROBE = "Hello"


@dataclass(frozen=True)
class Answer:
    """A whole answer, who gave it, after how many seconds, and after how many its first token was there."""

    prompt: str
    text: str
    token_ids: tuple[int, ...]
    finish_reason: str | None
    replica: str
    seconds: float
    ttft_s: float


class Replica:
    """Hosts one engine. A plain class; the fleet makes it an actor.

    Args:
        plan: what to start.
        cache: the graph cache.
        weights: a model that is to come to this node; None: it is there, or vLLM fetches it.

    Raises:
        OSError: this node's disk is full, or cannot be written.
    """

    def __init__(self, plan: ReplicaPlan, cache: CacheSettings, weights: Weights | None = None) -> None:
        began = time.monotonic()
        if weights:
            plan = replace(plan, spec=replace(plan.spec, model=weights.path))
        self.plan = plan
        scratch, root = Path(plan.spec.scratch), Path(plan.spec.cache_root)
        self._reaper = reaper.start_reaper(remove=str(scratch))
        for folder in (scratch, root):
            make_private(folder)
        self._began, self._requests = began, 0
        self._events = timeline.EventLog(plan.spec.events_file)
        whole = plan.spec.args.get("load_format") != "dummy"
        self._files = files = Arrival(weights, plan.name, self._events, whole=whole) if weights else None
        self._engine: Engine = create(plan.kind, plan.spec)
        others = MultiNode(cache, root, self._events, weights) if len(plan.bundles) > 1 else None
        client = GraphCacheClient(cache, plan.name, self._events)
        self._start = Start(
            plan.name, client, self._events, root, began=began, others=others, files=files,
            size=lambda: models.size_of(plan.spec.model, plan.spec.args),
        )  # fmt: skip

    async def start(self) -> StartReport:
        """Start, and answer a probe of one token.

        Raises:
            EngineStartError: the engine did not come up; nothing of it is left.
        """
        try:
            with self._start.launching():
                key = await self._compile_key()
                restored = await asyncio.to_thread(self._start.restore, lambda: key)
                await self._engine.start(restored=restored)
                async for _ in self._engine.generate(_PROBE, Sampling(max_tokens=1), f"{self.plan.name}-probe"):
                    self._start.first_token()
                    break
        except BaseException:
            await self._engine.stop()
            raise
        await asyncio.to_thread(self._start.publish)
        if self.plan.spec.prestart_worker:
            prestart.later()
        return self._start.report()

    async def compile(self) -> StartReport:
        """Start without weights while they are on their way, publish the graphs, and stop; not where those are there.

        Raises:
            EngineStartError: the engine did not come up; nothing of it is left.
        """
        try:
            with self._start.launching():
                key = await self._compile_key()
                there = self._files is not None and self._files.there()
                if not there and not await asyncio.to_thread(self._start.restore, lambda: key):
                    await self._engine.start()
                    await asyncio.to_thread(self._start.publish)
            return self._start.report()
        finally:
            await self.stop()

    async def generate(self, prompt: str, sampling: Sampling) -> Answer:
        """Answer a prompt as a whole.

        Raises:
            EngineDeadError: the engine died.
        """
        started = time.monotonic()
        tokens: list[int] = []
        text, reason, first = "", None, 0.0
        async for chunk in self.stream(prompt, sampling):
            first = first or time.monotonic() - started
            tokens.extend(chunk.token_ids)
            text, reason = text + chunk.text, chunk.finish_reason
        return Answer(prompt, text, tuple(tokens), reason, self.plan.name, time.monotonic() - started, first)

    async def stream(self, prompt: str, sampling: Sampling) -> AsyncIterator[Chunk]:
        """Answer a prompt piece by piece."""
        self._requests += 1
        async for chunk in self._engine.generate(prompt, sampling, f"{self.plan.name}-{self._requests}"):
            yield chunk

    async def _compile_key(self) -> CompileKey:
        """Make the engine's configuration, once the model's is here."""
        await asyncio.to_thread(self._start.configuration)
        return await asyncio.to_thread(self._engine.prepare)

    async def check_health(self) -> None:
        """Return if the engine can generate; raises EngineDeadError if not."""
        await self._engine.check_health()

    async def phase(self) -> str:
        """The phase that ended last, for a progress display."""
        done = timeline.phases(self._events.read(), self._began)
        return done[-1].name if done else ""

    async def stop(self) -> None:
        """Stop the engine and remove the replica's folder."""
        await self._engine.stop()
        await asyncio.to_thread(self._start.end)
        await asyncio.to_thread(reaper.remove_folder, Path(self.plan.spec.scratch))
        self._reaper.over()
