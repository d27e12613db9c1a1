"""Single flight: leases, takeover, fencing, and a restart that loses nothing."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from orchestrator.graph_cache import registry as module
from orchestrator.graph_cache.registry import Registry


@pytest.fixture
def make(tmp_path: Path, monkeypatch):
    """The registry as a plain object: its logic needs no actor, only a place for objects."""
    monkeypatch.setattr(module.ray, "put", lambda data: bytes(data))
    return lambda lease_s=0.3: Registry(str(tmp_path), lease_s)


def test_the_first_leads_and_the_others_wait_for_it(make) -> None:
    async def run() -> None:
        registry = make()
        lead = await registry.acquire("k", {}, "a", 1.0)
        assert (lead["outcome"], lead["generation"], lead["waited"]) == ("lead", 1, False)
        waiting = [asyncio.create_task(registry.acquire("k", {}, f"w{i}", 5.0)) for i in range(7)]
        await asyncio.sleep(0.05)
        assert await registry.publish("k", 1, {"factors": {}}, b"graphs")
        for answer in await asyncio.gather(*waiting):
            assert (answer["outcome"], answer["ref"], answer["waited"]) == ("hit", [b"graphs"], True)

    asyncio.run(run())


def test_a_silent_leader_is_replaced_and_its_late_publish_fenced(make) -> None:
    async def run() -> None:
        registry = make(lease_s=0.2)
        await registry.acquire("k", {}, "stopped", 1.0)
        second = await registry.acquire("k", {}, "b", 2.0)
        assert (second["outcome"], second["generation"]) == ("lead", 2)
        assert not registry.renew("k", 1)
        assert not await registry.publish("k", 1, {}, b"late")
        registry.release("k", 1)  # changes nothing either
        assert registry.renew("k", 2)
        assert await registry.publish("k", 2, {}, b"good")
        assert (await registry.acquire("k", {}, "c", 1.0))["ref"] == [b"good"]

    asyncio.run(run())


def test_a_renewed_lease_outlasts_its_length(make) -> None:
    async def run() -> None:
        registry = make(lease_s=0.2)
        await registry.acquire("k", {}, "a", 1.0)
        for _ in range(4):
            await asyncio.sleep(0.1)
            assert registry.renew("k", 1)
        assert (await registry.acquire("k", {}, "b", 0.05))["outcome"] == "timeout"

    asyncio.run(run())


def test_a_leader_that_gives_up_passes_the_lead_on(make) -> None:
    async def run() -> None:
        registry = make(lease_s=60)
        await registry.acquire("k", {}, "a", 1.0)
        waiting = asyncio.create_task(registry.acquire("k", {}, "b", 5.0))
        await asyncio.sleep(0.02)
        registry.release("k", 1)
        answer = await asyncio.wait_for(waiting, 1.0)
        assert (answer["outcome"], answer["generation"]) == ("lead", 2)

    asyncio.run(run())


def test_a_restarted_registry_serves_what_was_published(make) -> None:
    async def run() -> None:
        first = make()
        await first.acquire("k", {"vllm": "1"}, "a", 1.0)
        await first.publish("k", 1, {"factors": {"vllm": "1"}}, b"graphs")
        second = make()
        answer = await second.acquire("k", {"vllm": "1"}, "b", 1.0)
        assert (answer["outcome"], answer["ref"], answer["generation"]) == ("hit", [b"graphs"], 1)
        assert second.replace("k", 1, "b") == 2  # generations go on from there

    asyncio.run(run())


def test_a_miss_names_what_differs_from_the_nearest_entry(make) -> None:
    async def run() -> None:
        registry = make()
        await registry.acquire("k", {"vllm": "1", "torch": "2", "cpu": "x"}, "a", 1.0)
        await registry.publish("k", 1, {"factors": {"vllm": "1", "torch": "2", "cpu": "x"}}, b"graphs")
        answer = await registry.acquire("l", {"vllm": "1", "torch": "3", "cpu": "x"}, "b", 1.0)
        assert (answer["outcome"], answer["nearest"]) == ("lead", ["torch"])

    asyncio.run(run())
