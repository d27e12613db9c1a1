"""Faults that were in the graph cache, or could be: the simulator has to find each."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from unittest import mock

from orchestrator.graph_cache import bundle, client, entry, registry, store
from orchestrator.graph_cache.entry import Entries, Entry
from orchestrator.graph_cache.registry import Registry
from orchestrator.graph_cache.store import Found, Store
from orchestrator.graph_cache.transfer_slots import Turns


class PointerStore(Store):
    """As the store was: a pointer that is written over, and every other bundle deleted at once."""

    def save(self, key: str, generation: int, data: Any) -> str:
        name = f"{generation}-{store.secrets.token_hex(4)}.bundle"
        self._write(f"{self._root}/{key}/{name}", data)
        own = bundle.unverified_header(memoryview(bytes(data)))
        pointer = {**own, "bytes": len(data), "bundle": name, "generation": generation}
        self._write(f"{self._root}/{key}/latest.json", json.dumps(pointer).encode())
        for old in self._files(key):
            if old.base_name.endswith(".bundle") and old.base_name != name:
                self._fs.delete_file(old.path)
        return name

    def header(self, key: str, name: str = "") -> dict[str, Any] | None:
        try:
            with self._fs.open_input_stream(f"{self._root}/{key}/latest.json") as stream:
                return dict(json.loads(stream.read()))
        except (OSError, ValueError):
            return None

    def load(self, key: str, name: str = "") -> Found | None:
        header = self.header(key)
        if header is None:
            return None
        try:
            with self._fs.open_input_stream(f"{self._root}/{key}/{header['bundle']}") as stream:
                return Found(header, bytes(stream.read()))
        except OSError:
            return None


def latest_written(files: Any) -> Any:
    """The last writer wins, however old its generation."""
    ranked = [info for info in files if store._rank(info.base_name) is not None]
    return max(ranked, key=lambda info: info.mtime_ns, default=None)


def delete_all_others(self: Store, key: str, mine: str) -> None:
    for info in self._files(key):
        if info.base_name != mine:
            self._fs.delete_file(info.path)


def delete_older_at_once(self: Store, key: str, mine: str) -> None:
    mine_rank = store._rank(mine)
    for info in self._files(key):
        rank = store._rank(info.base_name)
        if rank is not None and mine_rank is not None and rank < mine_rank:
            self._fs.delete_file(info.path)


def load_without_a_second_look(self: Store, key: str, name: str = "") -> Found | None:
    path = f"{self._root}/{key}/{name}" if name else store._path(store._newest(self._files(key)))
    if path is None:
        return None
    try:
        with self._fs.open_input_stream(path) as stream:
            data = bytes(stream.read())
    except OSError:
        return None
    return Found(store._described(path, data, len(data)), data)


def names_that_come_again(size: int) -> str:
    return "0" * (2 * size)


async def publish_without_a_second_look(
    self: Registry, key: str, generation: int, who: str, header: dict[str, Any], data: Any
) -> bool:
    found = await self._led_by(key, generation, who)
    if found is None:
        return False
    name = await asyncio.to_thread(self._store.save, key, generation, memoryview(data))
    found.header = {**header, "generation": generation, "durable": True, "bundle": name}
    self._entries.hold(found, await self._entries.put(data), len(data))
    found.published_by = (who, generation)
    found.end_lead()
    return True


async def publish_durable_whatever_the_disk_says(
    self: Registry, key: str, generation: int, who: str, header: dict[str, Any], data: Any
) -> bool:
    found = await self._led_by(key, generation, who)
    if found is None:
        return False
    name = ""
    with suppress(OSError):
        name = await asyncio.to_thread(self._store.save, key, generation, memoryview(data))
    if not self._leads(found, generation, who):
        return False
    found.header = {**header, "generation": generation, "durable": True, "bundle": name}
    self._entries.hold(found, await self._entries.put(data), len(data))
    found.published_by = (who, generation)
    found.end_lead()
    return True


async def evict_and_forget_the_generation(self: Registry, key: str) -> bool:
    if self._entry(key).leader:
        return False
    await asyncio.to_thread(self._store.delete, key)
    self._entries.pop(key, None)
    return True


async def load_without_looking_again(self: Registry, key: str, found: Entry) -> bool:
    loaded = await asyncio.to_thread(self._store.find, key, found.header, self._entries.max_bytes)
    if loaded is None:
        return False
    ref = await self._entries.put(loaded.data)
    found.header = {**loaded.header, "durable": True}
    found.generation = max(found.generation, int(loaded.header["generation"]))
    self._entries.hold(found, ref, len(loaded.data))
    return True


async def load_for_each(self: Registry, key: str, found: Entry) -> bool:
    return found.ref is not None or await self._load(key, found)


async def led_by_storage_on_the_loop(self: Registry, key: str, generation: int, who: str) -> Entry | None:
    if self._entries.get(key) is None:
        self._store.header(key)
    return await LED_BY(self, key, generation, who)


LED_BY = Registry._led_by


async def put_without_room(self: Entries, data: Any) -> Any:
    return await asyncio.to_thread(entry.ray.put, entry.np.frombuffer(data, dtype=entry.np.uint8))


def hold_without_bound(self: Entries, found: Entry, ref: Any, size: int) -> bool:
    found.ref, found.size, found.used = ref, size, 0.0
    found.turns = Turns()
    return ref is not None


def restarted_without_waiting(self: Registry, *words: Any) -> None:
    INIT(self, *words)
    self._leads_from = 0.0


INIT = Registry.__init__


def anyone_leads(self: Registry, found: Entry, generation: int, who: str) -> bool:
    return bool(found.leader)


def never_taken_over(self: Entry) -> float:
    return float("inf")


def not_verified(data: memoryview, key: bytes, expected: str, limits: bundle.Limits) -> Any:
    return bundle.manifest_of(data), bundle._parts(data)[2]


def load_whatever_is_newest(self: Store, key: str, name: str = "") -> Found | None:
    return LOAD(self, key)


LOAD = Store.load


def generations_from_one(self: Registry, key: str, found: Entry, generation: int, who: str) -> None:
    START_LEAD(self, key, found, 1, who)


START_LEAD = Registry._start_lead


def heartbeat_that_waits_for_each_answer(self: client.GraphCacheClient, receipt: Any) -> None:
    while not self._stop.wait(self.settings.lease_s / 3):
        with suppress(Exception):
            call = self.registry.renew.remote(receipt.key, receipt.generation, self._who)
            if not client.ray.get(call, timeout=60.0):
                return


async def lead_that_waits_for_a_listing(
    self: Registry, key: str, found: Entry, factors: dict[str, str], who: str
) -> dict[str, Any]:
    if found.leader != who:
        self._start_lead(key, found, found.generation + 1, who)
    generation = found.generation
    with suppress(OSError):
        await self.entries()
    return {"generation": generation, "nearest": None}


async def offer_what_is_in_memory(self: Registry, key: str) -> dict[str, Any] | None:
    found = self._entry(key)
    return None if found.leader or found.ref is None else found.offer()


def patches(*replaced: tuple[Any, str, Any]) -> Callable[[], list[Any]]:
    return lambda: [mock.patch.object(where, name, what) for where, name, what in replaced]


FAULTS: dict[str, Callable[[], list[Any]]] = {
    "the store as it was, with a pointer": patches((registry, "Store", PointerStore), (store, "Store", PointerStore)),
    "a slow writer's older bundle is taken for the newest": patches((store, "_newest", latest_written)),
    "each writer deletes all others' bundles": patches((Store, "_tidy", delete_all_others)),
    "no grace, and no second look of a reader": patches(
        (Store, "_tidy", delete_older_at_once), (Store, "load", load_without_a_second_look)
    ),
    "a leader that was replaced meanwhile publishes": patches((Registry, "publish", publish_without_a_second_look)),
    "a full disk is taken for a durable copy": patches((Registry, "publish", publish_durable_whatever_the_disk_says)),
    "an evicted key begins at generation 1 again": patches((Registry, "evict", evict_and_forget_the_generation)),
    "what was published while a load ran is forgotten": patches((Registry, "_load", load_without_looking_again)),
    "each who asks loads the bundle": patches((Registry, "_served", load_for_each)),
    "storage is asked on the event loop": patches((Registry, "_led_by", led_by_storage_on_the_loop)),
    "bundles are held without bound": patches(
        (Entries, "put", put_without_room), (Entries, "hold", hold_without_bound)
    ),
    "a restarted registry does not wait for leaders": patches((Registry, "__init__", restarted_without_waiting)),
    "whoever says so leads": patches((Registry, "_leads", anyone_leads)),
    "nobody takes over from a dead leader": patches((Entry, "led_until", never_taken_over)),
    "signatures are not checked": patches((client.bundle, "verify", not_verified)),
    "a replica loads another bundle than it was offered": patches((Store, "load", load_whatever_is_newest)),
    "a heartbeat waits a minute for a lost answer": patches(
        (client.GraphCacheClient, "_heartbeat", heartbeat_that_waits_for_each_answer)
    ),
    "a leader's lease runs while the store is listed": patches((Registry, "_lead", lead_that_waits_for_a_listing)),
    "what lies in the store is compiled again": patches((Registry, "offer", offer_what_is_in_memory)),
    "every lead has the same generation": patches((Registry, "_start_lead", generations_from_one)),
}
