"""From zero: a bounded number of requests waits for the first replica, the others are told when to come back."""

from __future__ import annotations

import asyncio
import json
import time
from types import SimpleNamespace
from typing import Any

import pytest
from ray.serve.llm.ingress import OpenAiIngress

from orchestrator.config import ServeConfig
from orchestrator.serve import openai_errors, waiting_room
from orchestrator.serve.ingress import Ingress
from orchestrator.serve.openai_errors import ComeBack, OpenAIHTTPException
from orchestrator.serve.waiting_room import Full, WaitingRoom

MODEL = "model:a"


def deployments(running: int) -> dict[str, Any]:
    states = {"RUNNING": running, "STARTING": 1}
    return {MODEL: SimpleNamespace(replica_states=states, status_trigger="AUTOSCALING", message="")}


def given_up() -> dict[str, Any]:
    said = "The deployment failed to start 3 times in a row. Error:\nTraceback\nOSError: No space left on device\n"
    return {MODEL: SimpleNamespace(replica_states={}, status_trigger="REPLICA_STARTUP_FAILED", message=said)}


def test_so_many_wait_and_each_place_is_free_once() -> None:
    room = WaitingRoom("app", most=2, start_s=60.0)
    room.look(deployments(0))
    first, _ = room.enter(MODEL), room.enter(MODEL)
    with pytest.raises(Full):
        room.enter(MODEL)
    assert room.waiting() == {MODEL: 2}
    first.leave(True)
    first.leave(False)  # when its answer begins, and again when it ends
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


def test_what_is_foreseen_counts_more_than_the_last_start(monkeypatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    room = WaitingRoom("app", most=0, start_s=60.0)
    room.look(deployments(0))
    room.expect({MODEL: 12.4})
    room.expect({})  # the status board did not answer
    with pytest.raises(Full) as full:
        room.enter(MODEL)
    assert full.value.retry_after_s == 13
    room.look(deployments(1))
    room.look(deployments(0))
    room.expect({MODEL: 8.0})
    with pytest.raises(Full) as full:
        room.enter(MODEL)
    assert full.value.retry_after_s == 8


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
    room._places.clear()
    room.enter(MODEL)
    assert told() == 130


def test_a_start_that_all_gave_up_is_forgotten(monkeypatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    room = WaitingRoom("app", most=1, start_s=60.0)
    room.look(deployments(0))
    room.enter(MODEL).leave(False)
    now[0] += 3600
    place = room.enter(MODEL)
    with pytest.raises(Full) as full:
        room.enter(MODEL)
    assert full.value.retry_after_s == 60
    now[0] += 15
    place.leave(True)  # an answer begins before the next look
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


async def ask(front: Any, model: str | None = "a", **more: Any) -> list[str]:
    body = SimpleNamespace(model=model, model_fields_set=set(), **more)
    return [part async for part in front._get_response(body=body, call_method="chat")]


def test_a_place_is_free_when_an_answer_begins_or_its_client_goes(front) -> None:
    async def story() -> None:
        front.replica, front.rest = asyncio.Event(), asyncio.Event()
        waiting = [asyncio.create_task(ask(front, model)) for model in ("a", "a:adapter")]
        await asyncio.sleep(0.01)
        with pytest.raises(ComeBack) as refused:
            await ask(front, None)
        answer = openai_errors.answer(refused.value)
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "7")
        waiting.pop().cancel()
        await asyncio.sleep(0.01)
        waiting.append(asyncio.create_task(ask(front)))
        front.replica.set()
        await asyncio.sleep(0.01)
        assert front._room.waiting() == {MODEL: 0}  # both have begun
        front.rest.set()
        assert await asyncio.gather(*waiting) == [["first", "last"]] * 2

    asyncio.run(story())


def test_who_waits_for_a_start_that_failed_is_told_why(front) -> None:
    async def story() -> None:
        front.replica = asyncio.Event()
        waiting = [asyncio.create_task(ask(front)) for _ in range(2)]
        await asyncio.sleep(0.01)
        front._room.look(deployments(0))  # Ray Serve tries again
        await asyncio.sleep(0.01)
        assert not any(task.done() for task in waiting)
        front._room.look(given_up())
        told = await asyncio.gather(*waiting, return_exceptions=True)
        with pytest.raises(OpenAIHTTPException) as later:
            await ask(front)
        for refused in (*told, later.value):
            assert (refused.status_code, refused.type) == (503, "start_failed")
            assert refused.message == "No replica of the model could start: OSError: No space left on device"
        front._room.look(deployments(0))  # at zero again
        front.replica.set()
        front.rest = front.replica
        assert await ask(front) == ["first", "last"]

    asyncio.run(story())


def test_a_stream_that_waits_says_so_and_ends_plainly(front, monkeypatch) -> None:
    """Proxies end a connection on which nothing comes; what a client does not know it passes over."""
    monkeypatch.setattr(waiting_room, "_COMMENT_S", 0.05)

    async def story() -> None:
        front.replica, front.rest = asyncio.Event(), asyncio.Event()
        stream, whole = asyncio.create_task(ask(front, stream=True)), asyncio.create_task(ask(front, stream=False))
        await asyncio.sleep(0.3)
        front.replica.set()
        front.rest.set()
        *comments, first, last = await stream
        assert (first, last) == ("first", "last")
        assert comments
        assert set(comments) == {": the first replica starts, about 7 s more\n\n"}
        assert await whole == ["first", "last"]
        front.replica = asyncio.Event()
        streams = [asyncio.create_task(ask(front, stream=True)) for _ in range(2)]
        await asyncio.sleep(0.3)
        front._room.look(given_up())
        for *comments, end in await asyncio.gather(*streams):
            assert comments
            told = json.loads(end.removeprefix("data: "))["error"]
            assert (told["code"], told["type"]) == (503, "start_failed")
            assert "No space left" in told["message"]

    asyncio.run(story())


def test_an_answer_without_a_part_is_no_failure(front, monkeypatch) -> None:
    async def nothing(self: Any, **_: Any) -> Any:
        return
        yield

    monkeypatch.setattr(OpenAiIngress, "_get_response", nothing)
    assert asyncio.run(ask(front)) == []
    assert front._room.waiting() == {MODEL: 0}
