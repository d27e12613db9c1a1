"""Turns to fetch a bundle: how many at once, and what becomes of who does not give one back."""

from __future__ import annotations

import asyncio

import pytest

from orchestrator.graph_cache import transfer_slots as module
from orchestrator.graph_cache.transfer_slots import Turns
from tests.waiting import HANG_S


def test_as_many_nodes_fetch_at_once_as_have_it() -> None:
    async def run() -> list[int]:
        turns, now, most = Turns(), set[str](), []

        async def node(name: str) -> None:
            assert await turns.take(name, HANG_S)
            now.add(name)
            most.append(len(now))
            await asyncio.sleep(0.01)
            now.discard(name)
            turns.give_back(name, copied=True)

        await asyncio.gather(*(node(f"n{i}") for i in range(31)))
        return most

    most = asyncio.run(run())
    assert most[:3] == [1, 1, 2]  # 1 copy, then 2, 4, 8, 16
    assert max(most) == 16


def test_a_failed_fetch_adds_no_copy() -> None:
    async def run() -> None:
        turns = Turns()
        assert await turns.take("a", 1.0)
        turns.give_back("a", copied=False)
        turns.give_back("a", copied=True)  # its turn is over
        assert await turns.take("b", 1.0)
        assert not await turns.take("c", 0.01)

    asyncio.run(run())


def test_a_turn_that_is_asked_for_twice_is_one_turn() -> None:
    """Ray sends a call again when it may have been lost."""

    async def run() -> None:
        turns = Turns()
        assert await turns.take("a", HANG_S)
        assert await turns.take("a", HANG_S)  # it does not wait for itself
        both = asyncio.gather(turns.take("b", HANG_S), turns.take("b", HANG_S))
        await asyncio.sleep(0)  # both wait
        turns.give_back("a", copied=True)
        assert await both == [True, True]
        assert await turns.take("c", HANG_S)  # the second copy's

    asyncio.run(run())


def test_a_dead_nodes_turn_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TURN_S", 0.5)

    async def run() -> None:
        turns = Turns()
        assert await turns.take("dead", 1.0)
        assert not await turns.take("b", 0.0)
        assert await turns.take("b", HANG_S)

    asyncio.run(run())
