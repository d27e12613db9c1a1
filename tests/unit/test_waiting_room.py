"""From zero: a bounded number of requests waits for the first replica, the others are told when to come back."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import pytest
from ray.serve.llm.ingress import OpenAiIngress

from orchestrator.config import ServeConfig
from orchestrator.serve import openai_errors
from orchestrator.serve.ingress import Ingress
from orchestrator.serve.openai_errors import ComeBack
from orchestrator.serve.waiting_room import Full, WaitingRoom

MODEL = "model:a"


def deployments(running: int) -> dict[str, Any]:
    return {MODEL: SimpleNamespace(replica_states={"RUNNING": running, "STARTING": 1})}


def test_so_many_wait_and_each_place_is_free_once() -> None:
    room = WaitingRoom("app", most=2, start_s=60.0)
    room.look(deployments(0))
    first, _ = room.enter(MODEL), room.enter(MODEL)
    with pytest.raises(Full):
        room.enter(MODEL)
    assert room.waiting() == {MODEL: 2}
    first(True)
    first(False)  # when its answer begins, and again when it ends
    room.enter(MODEL)
    with pytest.raises(Full):
        room.enter(MODEL)


def test_where_a_replica_runs_or_nothing_is_known_nobody_is_counted() -> None:
    room = WaitingRoom("app", most=0, start_s=60.0)
    room.enter(MODEL)
    room.look(deployments(1))
    room.enter(MODEL)
    assert room.waiting() == {}
    room.look({})
    room.enter(MODEL)


def test_a_start_that_was_seen_says_when_to_come_back(monkeypatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    room = WaitingRoom("app", most=1, start_s=60.0)

    def told() -> int:
        with pytest.raises(Full) as full:
            room.enter(MODEL)
        return full.value.retry_after_s

    room.look(deployments(0))
    room.enter(MODEL)
    now[0] += 20
    assert told() == 40
    now[0] += 100  # longer than was guessed
    assert told() == 1
    now[0] += 10
    room.look(deployments(1))
    now[0] += 500
    room.look(deployments(0))  # at zero again
    room._waiting.clear()
    room.enter(MODEL)
    assert told() == 130


def test_a_start_that_all_gave_up_is_forgotten(monkeypatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    room = WaitingRoom("app", most=1, start_s=60.0)
    room.look(deployments(0))
    room.enter(MODEL)(False)
    now[0] += 3600
    leave = room.enter(MODEL)
    with pytest.raises(Full) as full:
        room.enter(MODEL)
    assert full.value.retry_after_s == 60
    now[0] += 15
    leave(True)  # an answer begins before the next look
    room.look(deployments(1))
    assert room._took == {MODEL: 15.0}


@pytest.fixture
def front(monkeypatch) -> Any:
    async def answers(self: Any, *, body: Any, call_method: str, raw_request: Any) -> Any:
        await self.replica.wait()
        yield "first"
        await self.rest.wait()
        yield "last"

    monkeypatch.setattr(OpenAiIngress, "_get_response", answers)
    made = Ingress.__new__(Ingress)
    made._model_cards, made._lora_paths, made._served = {"a": None}, {"a": "s3://adapters"}, ServeConfig()
    made._default_serve_handles = {"a": SimpleNamespace(deployment_id=SimpleNamespace(name=MODEL))}
    made._room = WaitingRoom("app", most=2, start_s=7.0)
    made._room.look(deployments(0))
    return made


async def ask(front: Any, model: str | None = "a") -> list[str]:
    body = SimpleNamespace(model=model, model_fields_set=set())
    return [part async for part in front._get_response(body=body, call_method="chat")]


def test_a_place_is_free_when_an_answer_begins_or_its_client_goes(front) -> None:
    async def story() -> None:
        front.replica, front.rest = asyncio.Event(), asyncio.Event()
        waiting = [asyncio.create_task(ask(front, model)) for model in ("a", "a:adapter")]
        await asyncio.sleep(0.01)
        with pytest.raises(ComeBack) as refused:
            await ask(front, None)
        answer = await openai_errors._openai_error(None, refused.value)
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "7")
        waiting.pop().cancel()
        await asyncio.sleep(0.01)
        waiting.append(asyncio.create_task(ask(front)))
        front.replica.set()
        await asyncio.sleep(0.01)
        assert front._room._waiting[MODEL] == 0  # both have begun
        front.rest.set()
        assert await asyncio.gather(*waiting) == [["first", "last"]] * 2

    asyncio.run(story())
