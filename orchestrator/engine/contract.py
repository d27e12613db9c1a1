"""The contract that every engine keeps; the fake and vLLM pass the same tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from orchestrator.timeline import EngineFacts


@dataclass(frozen=True)
class EngineSpec:
    """Everything an engine needs to start, already decided by the plan.

    Attributes:
        replica: the replica's name, for logs and errors.
        model: what vLLM takes as `model`.
        args: keyword arguments of vLLM's AsyncEngineArgs.
        env: environment variables to set before vLLM is imported.
        scratch: the replica's own folder, made and removed by it.
        cache_root: what becomes VLLM_CACHE_ROOT.
        start_timeout_s: seconds until a start is given up.
        stock: plain vLLM: no plugin, no shared graphs.
        chat: prompts are user messages; the model's chat template is applied.
        cpu: it runs on CPU, not on GPUs.
        preload: fork the replica from its node's zygote, which has imported vLLM, and the engine's processes from it.
        quick_cpu_probe: those processes do not build programs to learn what the CPU runs.
        overlap: the tokenizer is read while those processes start.
        prestart_worker: once it is up, a Ray worker waits on its node for the next replica.
        share_kernels: on GPUs: kernels that it makes travel with its graphs.
        short_profile: those processes profile a few tokens where graphs were restored and the KV-cache size is set.
    """

    replica: str
    model: str
    args: Mapping[str, Any]
    env: Mapping[str, str]
    scratch: str
    cache_root: str
    start_timeout_s: float
    stock: bool = False
    chat: bool = False
    cpu: bool = True
    preload: bool = False
    quick_cpu_probe: bool = False
    short_profile: bool = False
    overlap: bool = False
    prestart_worker: bool = False
    share_kernels: bool = False

    @property
    def events_file(self) -> str:
        """Where the start-up events go, one JSON object a line."""
        return f"{self.scratch}/events.jsonl"


@dataclass(frozen=True)
class Sampling:
    """How to sample. Greedy by default, so that answers can be compared token by token."""

    max_tokens: int = 16
    temperature: float = 0.0
    ignore_eos: bool = False


@dataclass(frozen=True)
class Chunk:
    """A piece of an answer: the tokens and text since the last chunk; the last one has a finish reason."""

    token_ids: tuple[int, ...]
    text: str
    finish_reason: str | None = None


@dataclass(frozen=True)
class CompileKey:
    """What decides the compiled code, as named factors; see graph_cache/key.py.

    Attributes:
        unshared: why the engine has no graphs to share; "" where it has.
    """

    factors: Mapping[str, str] = field(default_factory=dict)
    unshared: str = ""


class Engine(Protocol):
    """One tensor-parallel inference engine.

    Order of calls: prepare, start, then any number of generate and check_health, then stop (from any state).
    """

    def prepare(self) -> CompileKey:
        """Import and configure, start nothing; returns the compile key's factors.

        Raises:
            EngineStartError: the configuration does not make an engine.
        """

    async def start(self, *, restored: bool = False) -> EngineFacts:
        """Start every process of the engine and return what it said about its graphs.

        Args:
            restored: graphs for its compile key lie under `cache_root`.

        Raises:
            EngineStartError: with the root cause, within seconds of it, and with no process left.
        """

    def generate(self, prompt: str, sampling: Sampling, request_id: str) -> AsyncIterator[Chunk]:
        """Stream the answer to a prompt.

        Raises:
            EngineDeadError: the engine died; no more chunks will come.
        """

    async def check_health(self) -> None:
        """Return if the engine can generate.

        Raises:
            EngineDeadError: it cannot.
        """

    async def stop(self) -> None:
        """End every process of the engine; does not fail, and may be called twice."""
