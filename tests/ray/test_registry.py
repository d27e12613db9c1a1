"""Single flight: leases, takeover, fencing, and a restart that loses nothing."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import ray

from orchestrator.cli import main
from orchestrator.graph_cache import bundle, kernel_caches, key, registry_actor
from orchestrator.graph_cache import entry as module
from orchestrator.graph_cache.client import AOT_FOLDER, GraphCacheClient
from orchestrator.graph_cache.registry import Registry
from orchestrator.graph_cache.restore_result import Outcome, Receipt
from orchestrator.graph_cache.settings import CacheSettings
from orchestrator.graph_cache.store import Store
from orchestrator.serve import status_board
from orchestrator.serve.status_board import Board
from orchestrator.timeline import EngineFacts, EventLog
from tests.waiting import HANG_S, wait_for

HERD = 64


@pytest.fixture
def make(tmp_path: Path, monkeypatch):
    """The registry as a plain object: its logic needs no actor, only a place for objects."""
    monkeypatch.setattr(module.ray, "put", lambda data: bytes(data))
    return lambda lease_s=HANG_S, **more: Registry(str(tmp_path), lease_s, **{"lead_s": HANG_S, **more})


def test_the_first_leads_and_the_others_wait_for_it(make) -> None:
    async def run() -> None:
        registry = make()
        lead = await registry.acquire("k", {}, "a", 1.0)
        assert (lead["outcome"], lead["generation"], lead["waited"]) == ("lead", 1, False)
        waiting = [asyncio.create_task(registry.acquire("k", {}, f"w{i}", HANG_S)) for i in range(7)]
        await asyncio.sleep(0.05)  # they wait by then; if one did not, it would say so below
        assert await registry.publish("k", 1, "a", {"factors": {}}, b"graphs")
        for answer in await asyncio.gather(*waiting):
            assert (answer["outcome"], answer["ref"], answer["waited"]) == ("hit", [b"graphs"], True)

    asyncio.run(run())


def test_a_silent_leader_is_replaced_and_its_late_publish_fenced(make) -> None:
    async def run() -> None:
        registry = make(lease_s=0.2)
        await registry.acquire("k", {}, "stopped", 1.0)
        second = await registry.acquire("k", {}, "b", HANG_S)
        assert (second["outcome"], second["generation"]) == ("lead", 2)
        assert not await registry.renew("k", 1, "stopped")
        assert not await registry.publish("k", 1, "stopped", {}, b"late")
        await registry.release("k", 1, "stopped")  # changes nothing either
        assert await registry.renew("k", 2, "b")
        assert await registry.publish("k", 2, "b", {}, b"good")
        assert (await registry.acquire("k", {}, "c", 1.0))["ref"] == [b"good"]

    asyncio.run(run())


def test_a_renewed_lease_outlasts_its_length(make, monkeypatch) -> None:
    now = 1000.0

    async def run() -> None:
        nonlocal now
        monkeypatch.setattr(module.time, "monotonic", lambda: now)
        registry = make(lease_s=20.0)
        await registry.acquire("k", {}, "a", 1.0)
        for _ in range(4):
            now += 10.0
            assert await registry.renew("k", 1, "a")
        now += 19.0
        assert (await registry.acquire("k", {}, "b", -1.0))["outcome"] == "timeout"
        now += 2.0  # and no longer
        assert (await registry.acquire("k", {}, "b", -1.0))["outcome"] == "lead"

    asyncio.run(run())


def test_a_leader_that_gives_up_passes_the_lead_on(make) -> None:
    async def run() -> None:
        registry = make()
        await registry.acquire("k", {}, "a", 1.0)
        waiting = asyncio.create_task(registry.acquire("k", {}, "b", HANG_S))
        await asyncio.sleep(0.02)
        await registry.release("k", 1, "a")
        answer = await asyncio.wait_for(waiting, HANG_S / 2)  # no lease has ended by then
        assert (answer["outcome"], answer["generation"]) == ("lead", 2)

    asyncio.run(run())


def test_a_restarted_registry_serves_what_was_published(make) -> None:
    async def run() -> None:
        first = make()
        await first.acquire("k", {"vllm": "1"}, "a", 1.0)
        await first.publish("k", 1, "a", {"factors": {"vllm": "1"}}, b"graphs")
        second = make()
        answer = await second.acquire("k", {"vllm": "1"}, "b", 1.0)
        assert (answer["outcome"], answer["ref"], answer["generation"]) == ("hit", [b"graphs"], 1)
        assert await second.replace("k", 1, "b") == 2  # generations go on from there

    asyncio.run(run())


def test_a_miss_names_what_differs_from_the_nearest_entry(make) -> None:
    async def run() -> None:
        registry = make()
        await registry.acquire("k", {"vllm": "1", "torch": "2", "cpu": "x"}, "a", 1.0)
        await registry.publish("k", 1, "a", {"factors": {"vllm": "1", "torch": "2", "cpu": "x"}}, b"graphs")
        answer = await registry.acquire("l", {"vllm": "1", "torch": "3", "cpu": "x"}, "b", 1.0)
        assert (answer["outcome"], answer["nearest"]) == ("lead", ["torch"])

    asyncio.run(run())


def test_a_leader_that_never_ends_is_replaced_although_it_renews(make) -> None:
    async def run() -> None:
        registry = make(lead_s=0.5)
        await registry.acquire("k", {}, "hung", 1.0)
        waiting = asyncio.create_task(registry.acquire("k", {}, "b", HANG_S))
        renewed = []
        while not waiting.done():
            renewed.append(await registry.renew("k", 1, "hung"))
            await asyncio.sleep(0.05)
        assert renewed[0]
        assert not await registry.renew("k", 1, "hung")
        assert waiting.result()["outcome"] == "lead"

    asyncio.run(run())


def test_a_leader_outlives_its_registry(make) -> None:
    async def run() -> None:
        await make().acquire("k", {}, "a", 1.0)
        restarted = make()
        assert await restarted.renew("k", 1, "a")
        assert (await restarted.acquire("k", {}, "b", 0.05))["outcome"] == "timeout"  # it waits for the old leader
        assert not await restarted.renew("k", 1, "somebody else")
        assert await restarted.publish("k", 1, "a", {}, b"graphs")
        again = make()
        assert not await again.renew("k", 1, "a")  # what is published is published
        assert not await again.publish("k", 1, "a", {}, b"late")
        assert (await again.acquire("k", {}, "b", 1.0))["ref"] == [b"graphs"]

    asyncio.run(run())


def test_a_newer_leader_is_believed_over_an_older_ones_late_word(make) -> None:
    async def run() -> None:
        restarted = make()
        assert await restarted.renew("k", 1, "old")  # sent before the restart; it has given up since
        assert await restarted.renew("k", 2, "new")
        assert not await restarted.renew("k", 1, "old")
        assert await restarted.publish("k", 2, "new", {}, b"graphs")

    asyncio.run(run())


def test_a_leader_is_believed_by_all_its_calls_at_once(make, monkeypatch) -> None:
    """After a restart, while another cluster publishes: one of them looks into the store before it, one after it."""

    async def run() -> None:
        registry, led = make(), threading.Event()
        answers = iter([{"generation": 1}, None])

        def header(_: str) -> dict | None:
            found = next(answers)
            if found is not None:
                led.wait(HANG_S)
            return found

        monkeypatch.setattr(registry._store, "header", header)
        later = asyncio.create_task(registry.publish("k", 1, "a", {}, b"graphs"))
        await asyncio.sleep(0.05)
        assert await registry.renew("k", 1, "a")
        led.set()
        assert await later

    asyncio.run(run())


def test_nobody_leads_while_a_leader_from_before_is_looked_up(make, monkeypatch) -> None:
    """The store takes longer to answer than a restarted registry waits for such leaders."""

    async def run() -> None:
        registry, answered = make(lease_s=0.1, restarted=True), threading.Event()

        def header(_: str) -> None:
            monkeypatch.delattr(registry._store, "header")  # this call alone is slow
            answered.wait(HANG_S)

        monkeypatch.setattr(registry._store, "header", header)
        claim = asyncio.create_task(registry.renew("k", 1, "a"))
        await asyncio.sleep(0.05)
        try:
            assert (await registry.acquire("k", {}, "b", 0.5))["outcome"] == "timeout"
        finally:
            answered.set()
        assert await claim
        assert await registry.publish("k", 1, "a", {}, b"graphs")

    asyncio.run(run())


def test_what_another_cluster_published_ends_a_silent_lead(make) -> None:
    async def run() -> None:
        ours, theirs = make(lease_s=0.2), make()
        assert (await ours.acquire("k", {}, "silent", 1.0))["outcome"] == "lead"
        assert (await theirs.acquire("k", {}, "b", 1.0))["outcome"] == "lead"
        assert await theirs.publish("k", 1, "b", {}, b"graphs")
        answer = await ours.acquire("k", {}, "c", HANG_S)
        assert (answer["outcome"], answer["ref"]) == ("hit", [b"graphs"])
        assert not await ours.publish("k", 1, "silent", {}, b"late")

    asyncio.run(run())


def test_a_store_that_is_long_to_list_keeps_nobody(make, monkeypatch) -> None:
    """It is listed to say which entry is the nearest: a leader knows of its lead before the lease is over."""

    async def run() -> None:
        registry, listed = make(lease_s=0.6), threading.Event()

        def entries() -> list:
            listed.wait(HANG_S)
            return [("far", {"factors": {}, "generation": 1})]

        monkeypatch.setattr(registry._store, "entries", entries)
        try:
            lead = await registry.acquire("k", {}, "a", 1.0)
            assert (lead["outcome"], lead["nearest"]) == ("lead", None)
            assert await registry.renew("k", 1, "a")
        finally:
            listed.set()
        assert list(await registry.entries()) == ["far"]

    asyncio.run(run())


def test_memory_is_bounded_and_nothing_is_lost(make) -> None:
    async def run() -> None:
        registry = make(max_bytes=250)
        for i in range(5):
            await registry.acquire(f"k{i}", {}, "a", 1.0)
            assert await registry.publish(f"k{i}", 1, "a", {}, bytes([i]) * 100)
            assert registry.held_bytes() <= 250
        for i in range(5):
            assert (await registry.acquire(f"k{i}", {}, "b", 1.0))["ref"] == [bytes([i]) * 100]
            assert registry.held_bytes() <= 250
        big = await registry.acquire("big", {}, "a", 1.0)
        assert await registry.publish("big", big["generation"], "a", {}, b"x" * 300)
        answer = await registry.acquire("big", {}, "b", 1.0)
        assert (answer["outcome"], answer["ref"]) == ("hit", [])  # from the durable store

    asyncio.run(run())


def test_an_evicted_entry_is_compiled_again(make) -> None:
    async def run() -> None:
        registry = make()
        await registry.acquire("k", {}, "a", 1.0)
        assert not await registry.evict("k")  # somebody compiles it
        await registry.publish("k", 1, "a", {}, b"graphs")
        assert await registry.evict("k")
        assert not await registry.evict("k")
        assert await registry.entries() == {}
        assert (await registry.acquire("k", {}, "b", 1.0))["outcome"] == "lead"

    asyncio.run(run())


def test_without_a_durable_store_memory_serves(make, monkeypatch) -> None:
    async def run() -> None:
        registry = make()

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(registry._store, "save", full)
        await registry.acquire("k", {}, "a", 1.0)
        assert await registry.publish("k", 1, "a", {}, b"graphs")
        assert (await registry.acquire("k", {}, "b", 1.0))["ref"] == [b"graphs"]

    asyncio.run(run())


def test_a_turn_in_a_restarted_registry_does_not_cost_a_leader_its_word(make) -> None:
    async def run() -> None:
        registry = make()
        assert not await registry.fetch_turn("k", "b", 1.0)
        await registry.fetched("k", "b", True)
        assert await registry.renew("k", 1, "a")  # it led before the restart
        assert await registry.publish("k", 1, "a", {}, b"graphs")

    asyncio.run(run())


def test_any_number_of_waiting_replicas_leaves_room_for_the_leader(cache) -> None:
    """More calls wait than Ray's default lets an actor have open; found by bench=simulate."""
    import ray

    registry = registry_actor.connect("many-wait", cache.store, HANG_S, HANG_S, 1 << 20)
    try:
        lead = ray.get(registry.acquire.remote("k", {}, "leader", 1.0))
        waiting = [registry.acquire.remote("k", {}, f"w{i}", HANG_S) for i in range(1500)]
        assert ray.get(registry.renew.remote("k", lead["generation"], "leader"), timeout=HANG_S / 2)
        assert ray.get(registry.publish.remote("k", lead["generation"], "leader", {}, b"graphs"), timeout=HANG_S / 2)
        answers = ray.get(waiting, timeout=HANG_S / 2)  # at once: the lease would last for longer
        assert {answer["outcome"] for answer in answers} == {"hit"}
    finally:
        ray.kill(registry)


def test_many_who_ask_at_once_load_a_bundle_once(make, monkeypatch) -> None:
    async def run() -> None:
        first = make()
        await first.acquire("k", {}, "a", 1.0)
        await first.publish("k", 1, "a", {}, b"graphs")
        second, loads = make(), []
        load = second._store.load
        monkeypatch.setattr(second._store, "load", lambda *words: loads.append(words) or load(*words))
        answers = await asyncio.gather(*(second.acquire("k", {}, f"r{i}", HANG_S) for i in range(64)))
        assert {answer["outcome"] for answer in answers} == {"hit"}
        assert len(loads) == 1

    asyncio.run(run())


def test_a_leader_that_asks_again_leads_and_is_told_again_that_it_published(make) -> None:
    async def run() -> None:
        registry = make()
        for _ in range(2):
            assert (await registry.acquire("k", {}, "a", 1.0))["generation"] == 1
        for _ in range(2):
            assert await registry.publish("k", 1, "a", {}, b"graphs")
        assert not await registry.publish("k", 1, "b", {}, b"graphs")
        for _ in range(2):
            assert await registry.replace("k", 1, "b") == 2

    asyncio.run(run())


def test_a_restarted_registry_waits_for_the_leader_from_before(make) -> None:
    async def run() -> None:
        registry = make(restarted=True)
        waiting = asyncio.create_task(registry.acquire("k", {}, "b", HANG_S))
        await asyncio.sleep(0.05)
        assert await registry.renew("k", 1, "a")
        assert await registry.publish("k", 1, "a", {}, b"graphs")
        assert (await waiting)["ref"] == [b"graphs"]

    asyncio.run(run())


def test_memory_is_bounded_without_a_durable_store_too(make, monkeypatch) -> None:
    async def run() -> None:
        registry = make(max_bytes=250)

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(registry._store, "save", full)
        for i in range(5):
            await registry.acquire(f"k{i}", {}, "a", 1.0)
            assert await registry.publish(f"k{i}", 1, "a", {}, bytes(100))
            assert registry.held_bytes() <= 250
        assert (await registry.acquire("k0", {}, "b", 1.0))["outcome"] == "lead"  # it is nowhere any more
        assert not await registry.publish("k0", 2, "b", {}, bytes(300))
        assert set(await registry.entries()) == {"k3", "k4"}

    asyncio.run(run())


def test_other_settings_are_another_registry(local_ray: None, tmp_path: Path) -> None:
    namespace = f"settings-{tmp_path.name}"
    one = registry_actor.connect(namespace, str(tmp_path / "one"), 1.0, 1.0, 1 << 40)
    same = registry_actor.connect(namespace, str(tmp_path / "one"), 1.0, 1.0, 1 << 40)
    others = [
        registry_actor.connect(namespace, str(tmp_path / "two"), 1.0, 1.0, 1 << 40),
        registry_actor.connect(namespace, str(tmp_path / "one"), 2.0, 1.0, 1 << 40),
    ]
    assert one._actor_id == same._actor_id
    assert len({handle._actor_id for handle in [one, *others]}) == 3
    assert len(registry_actor.running(namespace)) == 3
    room = ray.nodes()[0]["Resources"]["object_store_memory"]
    limit = ray.get(one.__ray_call__.remote(lambda registry: registry._entries.max_bytes))
    assert limit == int(0.8 * room)  # the cluster's own, not what a driver believes
    for handle in [one, *others]:
        ray.kill(handle)


def test_what_a_cluster_has_one_of_is_small(local_ray: None, tmp_path: Path) -> None:
    """Ray gives an actor without async methods as many threads as calls at once."""
    made = [Board.connect("small"), registry_actor.connect("small", str(tmp_path), 1.0, 1.0, 1 << 20)]
    ray.get([made[0].replicas.remote(), made[1].entries.remote()])
    for actor in made:
        assert ray.get(actor.__ray_call__.remote(lambda _: psutil.Process().num_threads())) < 200
        ray.kill(actor)


def in_the_store(cache: CacheSettings, factors: dict[str, str], root: Path) -> None:
    """A bundle for these factors, which nobody has asked for yet."""
    (graphs := root / AOT_FOLDER / "x").mkdir(parents=True)
    (graphs / "model").write_bytes(os.urandom(1 << 19))
    known = {"key": key.digest(factors), "factors": factors, "created": 0.0, "publisher": "test"}
    data = bundle.pack(root, [graphs], bundle.signing_key(cache.key_file), known)
    Store(cache.store).save(key.digest(factors), 1, data)


def test_who_finds_nothing_where_it_was_told_to_look_asks_again(cache, tmp_path: Path, monkeypatch) -> None:
    """Another cluster evicts the entry between the offer and the look. It leads then, instead of compiling alone."""
    factors = {"model": "m"}
    in_the_store(cache, factors, tmp_path / "root")
    small = registry_actor.connect(f"small-{tmp_path.name}", cache.store, HANG_S, HANG_S, 1)  # it holds nothing
    load = Store.load

    def evicted(store: Store, key: str, name: str = "") -> object:
        store.delete(key)
        return load(store, key, name)

    monkeypatch.setattr(Store, "load", evicted)
    client = GraphCacheClient(replace(cache, registry=small), "r0", EventLog(os.devnull))
    receipt = client.restore(factors, tmp_path / "root-0")
    assert (receipt.outcome, receipt.generation) == (Outcome.compiled, 2), receipt.reason  # it leads
    client.abandon(receipt)
    ray.kill(small)


def test_kernels_come_with_graphs(cache, tmp_path: Path, monkeypatch) -> None:
    """What a start on one node made besides graphs lies where another node's engines look for it."""
    factors, one, two = {"model": "m"}, tmp_path / "one", tmp_path / "two"
    monkeypatch.setenv("TRITON_CACHE_DIR", str(one / "triton"))
    monkeypatch.setenv(kernel_caches.NODE_ROOT, str(one / "vllm"))
    publisher = GraphCacheClient(cache, "publisher", EventLog(os.devnull))
    receipt = publisher.restore(factors, one / "root")
    for file in (one / "root" / AOT_FOLDER / "x" / "model", one / "triton" / "KEY" / "add.cubin"):
        file.parent.mkdir(parents=True)
        file.write_bytes(b"made")
    kernel_caches.begin(one / "root")
    (one / "root" / kernel_caches.USED / "KEY").touch()
    os.utime(one / "triton" / "KEY" / "add.cubin", (time.time() + 9, time.time() + 9))
    receipt = publisher.publish(receipt, EngineFacts(compiled=1, saved=["model"], kv_tokens=640), one / "root")
    assert receipt.published
    assert (receipt.kernels, receipt.kv_tokens) == ({"Triton kernels": {"brought": 0, "made": 1}}, 0)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(two / "triton"))
    monkeypatch.setenv(kernel_caches.NODE_ROOT, str(two / "vllm"))
    client = GraphCacheClient(replace(cache, node_folder=str(two / "node")), "r1", EventLog(os.devnull))
    assert client.install_ahead(receipt.key)
    assert (two / "triton" / "KEY" / "add.cubin").read_bytes() == b"made"
    receipt = client.restore(factors, two / "root")
    assert receipt.restored
    receipt = client.publish(receipt, EngineFacts(loaded=1), two / "root")
    assert (receipt.kernels, receipt.kv_tokens) == ({"Triton kernels": {"brought": 1}}, 640)


def test_a_herd_on_a_real_cluster(cache, tmp_path: Path, record_property) -> None:
    """64 clients, each with a node folder of its own, ask for a key that lies in the store: how long the last one takes
    is said, and decides nothing. tests/simulation/test_herd.py has ten thousand."""
    factors = {"model": "m"}
    in_the_store(cache, factors, tmp_path / "root")

    def start(number: int) -> tuple[Receipt, float]:
        mine = replace(cache, node_folder=str(tmp_path / f"node-{number}"))
        client = GraphCacheClient(mine, f"r{number}", EventLog(os.devnull))
        return client.restore(factors, tmp_path / f"root-{number}"), time.monotonic()

    began = time.monotonic()
    with ThreadPoolExecutor(HERD) as pool:
        found = list(pool.map(start, range(HERD)))
    assert {(receipt.outcome, receipt.source) for receipt, _ in found} == {(Outcome.hit, "memory")}
    took = max(ended for _, ended in found) - began
    record_property("last_of_64_s", round(took, 3))
    print(f"the last of {HERD} clients had its graphs after {took:.2f} s")


def test_what_stays_for_later_jobs_can_be_ended(local_ray: None, tmp_path: Path, monkeypatch, capsys) -> None:
    """And nobody else's actors."""
    mine, other = f"mine-{tmp_path.name}", f"other-{tmp_path.name}"
    for namespace in (mine, other):
        ray.get(registry_actor.connect(namespace, str(tmp_path), HANG_S, HANG_S, 1 << 20).held_bytes.remote())
    ray.get(Board.connect(mine).replicas.remote())
    stranger = ray.remote(Board).options(name="a-stranger", namespace=mine, num_cpus=0).remote()
    ray.get(stranger.replicas.remote())
    monkeypatch.setattr(ray, "init", lambda *_, **__: None)  # this process is connected already, and stays so
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    assert main.main(["cache", "stop", "--namespace", mine]) == 0
    said = capsys.readouterr().out
    assert "graph-registry-" in said
    assert f"{status_board.NAME} ended" in said
    wait_for(lambda: not registry_actor.running(mine))
    assert len(registry_actor.running(other)) == 1
    assert ray.get(stranger.replicas.remote()) == []
    assert main.main(["cache", "stop", "--namespace", mine]) == 0
    assert "Nothing of ours" in capsys.readouterr().out
    ray.kill(*registry_actor.running(other))
