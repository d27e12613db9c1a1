"""Both hosts of a start, over real vLLM, keep tests/start_contract.py: an engine that is given up leaves nothing."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from orchestrator import models
from orchestrator.config import EngineKind
from orchestrator.engine import EngineSpec
from orchestrator.engine.start import Start
from orchestrator.engine.start_report import StartReport
from orchestrator.engine.vllm import engine as vllm_engine
from orchestrator.engine.vllm import reaper, serve_hook
from orchestrator.engine.vllm.supervisor import Supervisor
from orchestrator.fleet import replica as fleet
from orchestrator.fleet.plan import ReplicaPlan
from tests.start_contract import POINTS, Cache, Others, check
from tests.waiting import HANG_S

# where real processes make a difference
NAMES = ("after-begin", "after-build", "before-started", "before-token", "before-publish", "before-disk")
CASES = [point for point in POINTS if str(point) in NAMES]


@pytest.fixture
def spec(make_app, state: str, tmp_path: Path) -> Iterator[EngineSpec]:
    """The tiny Llama; the process environment is put back afterwards."""
    before = dict(os.environ)
    os.environ |= {"HF_HUB_OFFLINE": "1"}
    root = tmp_path / "scratch"
    args = {
        "max_model_len": 256, "max_num_seqs": 4, "max_num_batched_tokens": 256, "dtype": "float32",
        "kv_cache_memory_bytes": 16 << 20, "additional_config": {"orchestrator": {"kv_update": "layer_index"}},
    }  # fmt: skip
    model = models.resolve(make_app("model=tiny_llama").model, state)
    yield EngineSpec("replica-0", model, args, {}, str(root), str(root / "cache"), start_timeout_s=HANG_S)
    os.environ.clear()
    os.environ.update(before)


class FleetHost:
    """A replica of a fleet, in this process."""

    def __init__(self, spec: EngineSpec, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cache, self.others = Cache(), Others()
        monkeypatch.setattr(fleet, "GraphCacheClient", lambda *_: self.cache)
        self._loop = asyncio.new_event_loop()
        self.replica = fleet.Replica(ReplicaPlan("replica-0", spec, EngineKind.vllm, ({"CPU": 1},), "PACK", 1), None)
        self.events, self.supervisor = self.replica._events, self.replica._engine._supervisor

    def target(self, step: str) -> tuple[Any, str]:
        owner = {"publish": self.cache, "build": vllm_engine.VllmEngine, "token": self.replica._engine}
        names = {"build": "_build", "token": "generate"}
        return owner.get(step, self.supervisor), names.get(step, step)

    def start(self) -> StartReport:
        try:
            return self._loop.run_until_complete(self.replica.start())
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        self._loop.run_until_complete(self.replica.stop())

    def left(self) -> list[str]:
        return _left(self.supervisor)


class ServeHost:
    """vLLM's AsyncLLM as Ray Serve LLM makes it."""

    def __init__(self, spec: EngineSpec, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cache, self.others = Cache(), Others()
        self._spec, self._loop = spec, asyncio.new_event_loop()
        Path(spec.cache_root).mkdir(parents=True)
        self.supervisor = Supervisor(spec, remove=spec.scratch)
        self.events = self.supervisor.events
        self._start = Start("replica-0", self.cache, self.events, Path(spec.cache_root))
        self.llm: Any = None

    def target(self, step: str) -> tuple[Any, str]:
        if step == "build":
            from vllm.v1.engine.async_llm import AsyncLLM

            return AsyncLLM, "__init__"
        owner = {"publish": self.cache, "token": serve_hook}
        return owner.get(step, self.supervisor), {"token": "first_token"}.get(step, step)

    def start(self) -> StartReport:
        return self._loop.run_until_complete(self._started())

    async def _started(self) -> StartReport:
        self.supervisor.enter()
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        self.supervisor.imported()
        config = AsyncEngineArgs(model=self._spec.model, **self._spec.args).create_engine_config()
        hosted = serve_hook.hosting(AsyncLLM, self.supervisor, self._start)
        self.llm = hosted.from_vllm_config(config, disable_log_stats=True)
        try:
            await serve_hook.first_token(self.llm, "probe")
        except BaseException:
            self.stop()
            raise
        self._start.first_token()
        return self._start.report()

    def stop(self) -> None:
        self.llm.shutdown()

    def left(self) -> list[str]:
        return _left(self.supervisor)


def _left(supervisor: Supervisor) -> list[str]:
    """Processes, folders and shared memory. `_reaper` may stay for what this very process has mapped."""
    kept = [str(p) for p in reaper.marked(supervisor._marker)]
    folders = [supervisor.spec.scratch] if Path(supervisor.spec.scratch).exists() else []
    segments = [str(s) for s in supervisor._segments if s.exists() and s not in reaper._mapped(psutil.Process())]
    return kept + folders + segments


@pytest.mark.parametrize("point", CASES, ids=str)
@pytest.mark.parametrize("host", [FleetHost, ServeHost])
def test_a_start_ends_as_it_has_to(host: type, point, spec: EngineSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "fleet" if host is FleetHost else "serve"
    check(lambda: host(spec, monkeypatch), name, point, monkeypatch)
