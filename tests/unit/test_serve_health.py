"""What a replica's health check raises is read by Ray Serve's controller, which must need none of vLLM for it."""

from __future__ import annotations

import asyncio
import pickle
from types import SimpleNamespace

import pytest

pytest.importorskip("vllm")
from ray.serve.llm.deployment import LLMServer
from vllm.v1.engine.exceptions import EngineDeadError as VllmDead

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
