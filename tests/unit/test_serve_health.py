"""What a replica's health check raises is read by Ray Serve's controller, which must need none of vLLM for it."""

from __future__ import annotations

import asyncio
import pickle
import time
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")
from ray.serve.llm.deployment import LLMServer
from vllm.v1.engine.exceptions import EngineDeadError as VllmDead

from orchestrator.engine.vllm import serve_hook
from orchestrator.errors import EngineDeadError
from orchestrator.serve.server import Server


@pytest.mark.parametrize("raised", [VllmDead(), RuntimeError("a\nb"), VllmDead(suppress_context=True)])
def test_a_dead_engine_is_told_in_a_class_of_ours(raised: Exception, monkeypatch) -> None:
    async def check_health(self: LLMServer) -> None:
        raise raised

    monkeypatch.setattr(LLMServer, "check_health", check_health)
    server = object.__new__(Server)
    server._start = SimpleNamespace(name="model:tiny#1")
    with pytest.raises(EngineDeadError, match=r"^model:tiny#1: .*Error: ") as error:
        asyncio.run(server.check_health())
    written = pickle.dumps(error.value)
    assert b"vllm" not in written
    assert str(pickle.loads(written)) == str(error.value)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Any:
    """One whose engine is full: a probe does not get its turn."""

    async def fine(self: LLMServer) -> None:
        pass

    async def waits(client: Any, request: str) -> None:
        client.probed += 1
        if client.works:
            client.last_token = time.monotonic()  # another request's
        await asyncio.sleep(3600)

    monkeypatch.setattr(LLMServer, "check_health", fine)
    monkeypatch.setattr(serve_hook, "first_token", waits)
    found: Any = object.__new__(Server)
    found._start, found._probes, found._last_token, found._report = SimpleNamespace(name="model:tiny#1"), 0, 0.0, {}
    found._settings = SimpleNamespace(health_period_s=0.01, health_timeout_s=0.05)
    said = SimpleNamespace(remote=lambda *_: None)
    found._board, found._worker = SimpleNamespace(tell=said, tell_worker=said), ("orchestrator", "{}")
    found.engine = SimpleNamespace(_engine_client=SimpleNamespace(last_token=0.0, probed=0, works=True))
    return found


def test_a_replica_that_is_full_and_works_is_healthy(server: Any) -> None:
    asyncio.run(server.check_health())
    assert server.engine._engine_client.probed == 1


def test_a_token_of_any_request_spares_the_probe(server: Any) -> None:
    server._settings.health_period_s = 60.0
    server.engine._engine_client.last_token = time.monotonic()
    asyncio.run(server.check_health())
    assert server.engine._engine_client.probed == 0


def test_a_replica_that_is_full_and_hangs_is_dead(server: Any) -> None:
    server.engine._engine_client.works = False
    with pytest.raises(EngineDeadError, match=r"no token within serve.health_timeout_s=0.05"):
        asyncio.run(server.check_health())


def test_the_engine_notes_tokens_of_requests_that_do_not_stream() -> None:
    class Plain:
        def __init__(self, config: Any, stat_loggers: list[Any]) -> None:
            self.loggers = [make(config, 0) for make in stat_loggers]

    idle = SimpleNamespace(num_generation_tokens=0)
    supervisor: Any = SimpleNamespace(events=SimpleNamespace(mark=lambda phase: None), logging_file="")
    supervisor.begin = supervisor.started = lambda **_: None
    supervisor.overdue = lambda: False
    start: Any = SimpleNamespace(launching=nullcontext, restore=lambda key: True, publish=lambda: None, replica="r")
    start.receipt = SimpleNamespace(outcome=SimpleNamespace(value="hit"), reason="")
    engine: Any = serve_hook.hosting(Plain, supervisor, start)(SimpleNamespace())
    (noted,) = engine.loggers
    noted.record(None, None)
    noted.record(None, idle, None, engine_idx=0)
    noted.log()
    assert engine.last_token == 0.0
    noted.record(None, SimpleNamespace(num_generation_tokens=3), None, engine_idx=0)
    assert 0.0 < engine.last_token <= time.monotonic()
