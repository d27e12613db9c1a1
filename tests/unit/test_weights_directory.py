"""The directory's answers: who waits is told as soon as there is something, and nobody asks in vain again and again."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from orchestrator.weights.directory import Directory, Unknown, Unreadable
from orchestrator.weights.listing import File, Listing
from orchestrator.weights.settings import Bounds
from orchestrator.weights.swarm import Errand
from orchestrator.weights.waiting import Waiting
from tests.waiting import HANG_S

NAME = "model"


def listing(pieces: int) -> Listing:
    return Listing("m", "/origin", (File("a.safetensors", pieces),), 1, 1)


async def joined(directory: Directory, *nodes: str, pieces: int = 2, readers: int = 1, **held: dict[int, str]) -> None:
    bounds = Bounds("/disk", 1 << 30, 2, readers, HANG_S)
    for node in nodes:
        await directory.join(NAME, node, listing(pieces), bounds, held.get(node, {}))


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)


def test_who_waits_is_told_what_another_has_fetched() -> None:
    async def work() -> None:
        directory = Directory()
        await joined(directory, "a", "b", pieces=1)
        assert await directory.next(NAME, "a", HANG_S) == (True, Errand(0, "", ""))
        waiting = asyncio.create_task(directory.next(NAME, "b", HANG_S))
        await asyncio.sleep(0.01)
        assert await directory.next(NAME, "a", HANG_S, (0, "digest")) == (True, None)
        assert await waiting == (True, Errand(0, "a", "digest"))

    run(work())


def test_all_streams_of_a_node_end_with_its_last_piece() -> None:
    async def work() -> None:
        directory = Directory()
        await joined(directory, "a", pieces=1)
        await directory.next(NAME, "a", HANG_S)
        streams = [asyncio.create_task(directory.next(NAME, "a", HANG_S)) for _ in range(3)]
        await asyncio.sleep(0.01)
        await directory.next(NAME, "a", HANG_S, (0, "digest"))
        assert await asyncio.gather(*streams) == [(True, None)] * 3

    run(work())


def test_who_has_waited_long_asks_again_and_its_errand_goes_to_another() -> None:
    async def work() -> None:
        directory = Directory()
        await joined(directory, "a", "b", "c", pieces=1)
        await directory.next(NAME, "a", HANG_S)
        assert await directory.next(NAME, "b", 0.01) == (True, None)
        waiting = asyncio.create_task(directory.next(NAME, "c", HANG_S))
        await asyncio.sleep(0.01)
        await directory.next(NAME, "a", HANG_S, (0, "digest"))
        assert await waiting == (True, Errand(0, "a", "digest"))

    run(work())


def test_an_errand_for_one_that_has_just_given_up_is_not_lost() -> None:
    async def work() -> None:
        directory = Directory()
        await joined(directory, "a", "b", pieces=1)
        await directory.next(NAME, "a", HANG_S)
        gone: asyncio.Future[Errand | None] = asyncio.get_running_loop().create_future()
        gone.cancel()
        directory._waiting[NAME].add("b", gone)
        await directory.next(NAME, "a", HANG_S, (0, "digest"))
        assert await directory.next(NAME, "b", 0.01) == (True, Errand(0, "a", "digest"))

    run(work())


def test_all_that_wait_are_told_when_nobody_can_read() -> None:
    async def work() -> None:
        directory = Directory()
        await joined(directory, "a", "b", pieces=1)
        errands = [await directory.next(NAME, "a", HANG_S)]
        streams = [asyncio.create_task(directory.next(NAME, node, HANG_S)) for node in ("a", "b", "b")]
        await asyncio.sleep(0.01)
        for node in ("a", "b"):
            await directory.failed(NAME, node, errands[0][1].piece, "", True)
        found = await asyncio.gather(*streams, return_exceptions=True)
        assert all(isinstance(answer, Unreadable) or answer[1] == Errand(0, "", "") for answer in found)
        assert isinstance(found[0], Unreadable)

    run(work())


def test_what_is_not_the_others_is_refused_and_fetched_again() -> None:
    async def work() -> None:
        directory = Directory()
        await joined(directory, "a", "b", pieces=2, a={0: "right", 1: "right"})
        errand = (await directory.next(NAME, "b", HANG_S))[1]
        assert (await directory.next(NAME, "b", HANG_S, (errand.piece, "wrong")))[0] is False
        assert (await directory.next(NAME, "b", HANG_S, (errand.piece, "right")))[0] is True

    run(work())


def test_a_restarted_directory_knows_nobody() -> None:
    with pytest.raises(Unknown):
        run(Directory().next(NAME, "a", 1.0))  # type: ignore[arg-type]


def test_a_change_has_few_asked_and_in_turn() -> None:
    waiting: Waiting[int] = Waiting()
    for number in range(1000):
        waiting.add(f"n{number}", number)
    asked: list[str] = []

    def find(node: str) -> Errand | None:
        asked.append(node)
        return Errand(0, "", "") if node == "n20" else None

    found = [told for _ in range(3) for told in waiting.turn(find)]
    assert found == [(20, "n20", Errand(0, "", ""))]
    assert asked == [f"n{number}" for number in range(24)]
    assert len(waiting.all()) == 999
    assert waiting.all("n7") == [7]
