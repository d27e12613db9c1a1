"""A replica: restore graphs -> start the engine -> first token -> publish graphs."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ray.exceptions import RayError

from orchestrator import timeline
from orchestrator.engine import Chunk, Engine, Sampling, create
from orchestrator.errors import OrchestratorError
from orchestrator.fleet.multi_node import FarNodes
from orchestrator.fleet.plan import ReplicaPlan
from orchestrator.graph_cache.client import GraphCacheClient
from orchestrator.graph_cache.restore_result import Receipt
from orchestrator.graph_cache.settings import CacheSettings

_PROBE = "Hello"


@dataclass(frozen=True)
class StartReport:
    """A finished start.

    Attributes:
        first_token_s: seconds from the request to the first token of a probe.
        phases: where they went; their lengths add up to first_token_s.
    """

    replica: str
    first_token_s: float
    receipt: Receipt
    facts: timeline.EngineFacts
    phases: tuple[timeline.Phase, ...]
    pid: int

    def as_dict(self) -> dict[str, Any]:
        """A JSON-ready copy."""
        return {
            "replica": self.replica,
            "first_token_s": round(self.first_token_s, 3),
            "receipt": self.receipt.as_dict(),
            "engine": self.facts.as_dict(),
            "pid": self.pid,
            "phases": [asdict(phase) for phase in self.phases],
        }


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
        requested_at, placed_at: when the start was asked for and when its placement group was there, in seconds since
            the epoch.
    """

    def __init__(self, plan: ReplicaPlan, cache: CacheSettings, requested_at: float, placed_at: float) -> None:
        self.plan = plan
        self._requested_at = requested_at
        scratch = Path(plan.spec.scratch)
        shutil.rmtree(scratch, ignore_errors=True)  # of a killed predecessor
        scratch.mkdir(parents=True, exist_ok=True, mode=0o700)
        Path(plan.spec.cache_root).mkdir(parents=True, exist_ok=True, mode=0o700)
        self._events = timeline.EventLog(plan.spec.events_file)
        self._events.mark("placement", max(placed_at, requested_at))
        self._events.mark("process")
        self._engine: Engine = create(plan.kind, plan.spec)
        self._cache = GraphCacheClient(cache, plan.name, self._events)
        self._far = FarNodes(cache, Path(plan.spec.cache_root)) if len(plan.bundles) > 1 else None
        self._requests = 0

    async def start(self) -> StartReport:
        """Start, and answer a probe of one token.

        Raises:
            EngineStartError: the engine did not come up; nothing of it is left.
        """
        root = Path(self.plan.spec.cache_root)
        compile_key = await asyncio.to_thread(self._engine.prepare)
        receipt = await asyncio.to_thread(self._cache.restore, compile_key.factors, root)
        if self._far and receipt.restored:
            await asyncio.to_thread(self._far.install, receipt.key)
        try:
            facts = await self._engine.start(restored=receipt.restored)
            async for _ in self._engine.generate(_PROBE, Sampling(max_tokens=1), f"{self.plan.name}-probe"):
                self._events.mark("first token")
                break
        except BaseException:
            self._cache.give_up(receipt)
            await self._engine.stop()
            raise
        try:
            if self._far and facts.compiled:
                await asyncio.to_thread(self._far.gather, receipt.key)
            receipt = await asyncio.to_thread(self._cache.settle, receipt, facts, root)
        except (OrchestratorError, RayError) as error:  # serves all the same
            self._cache.give_up(receipt)
            receipt = replace(receipt, reason=f"not published: {error}")
        events = self._events.read()
        receipt = replace(receipt, notes=timeline.notes(events))
        phases = timeline.phases(events, self._requested_at)
        whole = phases[-1].start + phases[-1].seconds
        return StartReport(self.plan.name, whole, receipt, facts, tuple(phases), os.getpid())

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

    async def check_health(self) -> None:
        """Return if the engine can generate; raises EngineDeadError if not."""
        await self._engine.check_health()

    async def phase(self) -> str:
        """The phase that ended last, for a progress display."""
        done = timeline.phases(self._events.read(), self._requested_at)
        return done[-1].name if done else ""

    async def stop(self) -> None:
        """Stop the engine and remove the replica's folder."""
        await self._engine.stop()
        shutil.rmtree(self.plan.spec.scratch, ignore_errors=True)
        if self._far:
            await asyncio.to_thread(self._far.clean)
