"""An engine without vLLM that keeps the same contract: for tests, and for trying a cluster out.

It "compiles" by writing an artifact file where vLLM would, and "loads" by finding one, so that the graph cache around
it does exactly what it does for vLLM. `args` may hold `fake_compile_s`, `fake_mib` (of graphs), `fake_fail` (a phase),
`fake_hang`.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import ray
from ray.util import get_current_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from orchestrator import timeline
from orchestrator.engine.contract import Chunk, CompileKey, EngineSpec, Sampling
from orchestrator.errors import EngineDeadError, EngineStartError

TOKENS = 16  # of an answer, where a request does not say


class FakeEngine:
    """Deterministic answers, no processes."""

    def __init__(self, spec: EngineSpec) -> None:
        self.spec = spec
        self.events = timeline.EventLog(spec.events_file)
        self._running = False

    def prepare(self) -> CompileKey:
        """Derive a key from what would decide the code."""
        self.events.mark("import")
        if self.spec.args.get("fake_fail") == "plan":
            raise EngineStartError(f"{self.spec.replica}: refused", replica=self.spec.replica, phase="plan", cause="")
        factors = {
            "model": self.spec.model,
            "parallel": f"tp={self.spec.args.get('tensor_parallel_size', 1)}",
            "fake": str(self.spec.args.get("fake_code", "")),
        }
        self.events.mark("plan")
        return CompileKey({} if self.spec.stock else factors)

    async def start(self, *, restored: bool = False) -> timeline.EngineFacts:
        """Load the artifact if it is there and right, else compile."""
        try:
            await asyncio.wait_for(self._start(), self.spec.start_timeout_s)
        except TimeoutError:
            cause = f"no answer within engine.start_timeout_s={self.spec.start_timeout_s:g}"
            raise self._failure(cause) from None
        except EngineStartError:
            raise
        except Exception as error:
            raise self._failure(f"{type(error).__name__}: {error}") from error
        self._running = True
        self.events.mark("handshake")
        return timeline.facts(self.events.read())

    async def generate(self, prompt: str, sampling: Sampling, request_id: str) -> AsyncIterator[Chunk]:
        """Answer with tokens that depend on the prompt alone."""
        for i in range(sampling.max_tokens):
            await self.check_health()
            number = token(prompt, i)
            yield Chunk((number,), f" {number}", "length" if i == sampling.max_tokens - 1 else None)
            await asyncio.sleep(0)

    async def check_health(self) -> None:
        """Raise unless started and not stopped."""
        if not self._running:
            raise EngineDeadError(f"{self.spec.replica}: the engine is dead.", replica=self.spec.replica)

    async def stop(self) -> None:
        """Stop answering."""
        self._running = False

    async def _start(self) -> None:
        if self.spec.args.get("fake_hang"):
            await asyncio.sleep(3600)
        if self.spec.args.get("fake_fail") == "start":
            raise self._failure("RuntimeError: out of fake memory")
        content = f"graph of {self.spec.model} {self.spec.args.get('fake_code', '')}"
        compile_s, mib = float(self.spec.args.get("fake_compile_s", 0.2)), int(self.spec.args.get("fake_mib", 0))
        if self.spec.args.get("distributed_executor_backend") == "ray":  # a rank in each bundle of the replica's
            bundles = range(int(self.spec.args.get("tensor_parallel_size", 1)))
            in_bundle = [PlacementGroupSchedulingStrategy(get_current_placement_group(), i) for i in bundles]
            task = ray.remote(_rank)
            calls = [task.options(num_cpus=0, scheduling_strategy=s) for s in in_bundle]
            await asyncio.gather(*(call.remote(self.spec, i, content, compile_s, mib) for i, call in enumerate(calls)))
        else:
            await asyncio.to_thread(_rank, self.spec, 0, content, compile_s, mib)

    def _failure(self, cause: str) -> EngineStartError:
        text = f"{self.spec.replica}: the engine did not start: {cause}"
        return EngineStartError(text, replica=self.spec.replica, phase="start", cause=cause)


def token(prompt: str, number: int) -> int:
    """The token of that number in the answer to a prompt."""
    return int.from_bytes(hashlib.sha256(f"{prompt}{number}".encode()).digest()[:2], "big")


def _rank(spec: EngineSpec, rank: int, content: str, compile_s: float, mib: int) -> None:
    """Load this rank's artifact or write it, and log on this node what vLLM would."""
    events = timeline.EventLog(spec.events_file)

    def log(text: str) -> None:
        events.write(timeline.Event(time.monotonic(), "log", text, "fake", pid=os.getpid()))

    artifact = Path(spec.cache_root) / "torch_compile_cache" / "torch_aot_compile" / "fake" / f"rank_{rank}_0" / "model"
    if artifact.is_file() and artifact.read_text() == content:
        log(f"Directly load AOT compilation from path {artifact}")
        return
    if artifact.is_file():
        log(f"Compiling model again due to a load failure from {artifact}, reason: not this code")
    log("Starting torch.compile")
    time.sleep(compile_s)
    artifact.parent.mkdir(parents=True, exist_ok=True)
    artifact.write_text(content)
    if mib:
        artifact.with_name("kernels.so").write_bytes(os.urandom(mib << 20))
    log(f"saved AOT compiled function to {artifact}")
