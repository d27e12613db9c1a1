"""The cluster's registry of compiled graphs: one actor that says who compiles, and serves what was compiled.

States of a key: empty -> led (one replica compiles under a lease) -> published, and -> led again where what was
published turned out to be of no use. A lease that is not renewed, or that was held for too long, passes to the next who
asks, under a higher generation; a publish or a release by anyone but the leader changes nothing. docs/graph_cache.md
has the protocol.

The registry puts bundles into the object store itself, so that it owns them: an object dies with the worker that put
it. Memory is bounded: what was asked for least recently is dropped from it, and served from the durable store again,
which is also where a restarted registry finds everything. A leader that outlives its registry is believed by the next.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import ray

from orchestrator.cluster.singletons import cluster_wide
from orchestrator.graph_cache import key as keys
from orchestrator.graph_cache.store import Store
from orchestrator.graph_cache.transfer_slots import Turns

ACTOR_NAME = "graph-registry"
# Each replica that waits holds a call: with Ray's default of 1000, as many of them would shut the leader out, and
# nothing would ever be published (bench=simulate). An actor without async methods would get as many threads.
_CALLS = 100_000
logger = logging.getLogger("orchestrator.registry")


@dataclass
class _Entry:
    generation: int = 0
    leader: str = ""
    lease_until: float = 0.0
    lead_until: float = 0.0  # however often it renews
    header: dict[str, Any] = field(default_factory=dict)
    ref: Any = None  # the bundle in the object store, owned by this actor
    size: int = 0  # of that bundle
    used: float = 0.0  # when it was last asked for
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    turns: Turns = field(default_factory=Turns)  # to fetch that bundle


class Registry:
    """hit | lead | wait per key. A plain class; `connect` makes it an actor.

    Args:
        store_uri: where durable copies go.
        lease_s: seconds a leader may be silent before another takes over.
        lead_s: seconds a leader may take at most, silent or not.
        max_bytes: how much of the object store the served bundles may fill.
    """

    def __init__(self, store_uri: str, lease_s: float, lead_s: float = 600.0, max_bytes: int = 1 << 30) -> None:
        self._store = Store(store_uri)
        self._lease_s = lease_s
        self._lead_s = lead_s
        self._max_bytes = max_bytes
        self._entries: dict[str, _Entry] = {}
        self._index: dict[str, dict[str, Any]] | None = None  # headers in the durable store, read once

    async def acquire(self, key: str, factors: dict[str, str], who: str, wait_s: float) -> dict[str, Any]:
        """Ask for a key's graphs; waits at most `wait_s` seconds for a replica that compiles them now.

        Returns:
            `waited`: whether there was anything to wait for.
            `outcome`: "hit" (with `header`, and `ref`, a list of the bundle's object reference; it is empty where the
            object store has no room, and the bundle is then in the durable store alone), "lead" (with `generation`
            and `nearest`, the factors that differ from the nearest entry), or "timeout" (with `leader`).
        """
        entry = self._entries.setdefault(key, _Entry())
        deadline, waited = time.monotonic() + wait_s, False
        while True:
            if (found := await self._offer(key, entry)) is not None:
                return {"outcome": "hit", "waited": waited, **found}
            now = time.monotonic()
            if not entry.leader or now > min(entry.lease_until, entry.lead_until):
                return {"outcome": "lead", "waited": waited, **self._lead(key, entry, factors, who)}
            if now > deadline:
                return {"outcome": "timeout", "waited": waited, "leader": entry.leader}
            waited = True
            entry.changed.clear()
            pause = min(deadline, entry.lease_until, entry.lead_until) - now + 0.01
            try:
                await asyncio.wait_for(entry.changed.wait(), pause)
            except TimeoutError:
                continue

    async def offer(self, key: str) -> dict[str, Any] | None:
        """What a hit has to install, as in `acquire`; None if there is nothing. Nobody leads by asking so."""
        return await self._offer(key, self._entries.setdefault(key, _Entry()))

    async def fetch_turn(self, key: str, who: str, wait_s: float) -> bool:
        """Wait for this node's turn to fetch a large bundle (see transfer_slots.py); False after `wait_s` seconds.

        A key that is not known (after a restart) gets no entry by this: it would take a leader's word from it.
        """
        entry = self._entries.get(key)
        return entry is not None and await entry.turns.take(who, wait_s)

    async def fetched(self, key: str, who: str, copied: bool) -> None:
        """The end of that turn; `copied`: the object store of `who`'s node has the bundle now."""
        if (entry := self._entries.get(key)) is not None:
            entry.turns.give_back(who, copied)

    def renew(self, key: str, generation: int, who: str) -> bool:
        """Heartbeat of a leader; False once it was replaced, or has led for too long."""
        entry, now = self._led_by(key, generation, who), time.monotonic()
        if entry is None or now > entry.lead_until:
            return False
        entry.lease_until = now + self._lease_s
        return True

    def release(self, key: str, generation: int, who: str) -> None:
        """A leader gives up (its start failed, or nothing can be shared); the next who asks leads."""
        if (entry := self._led_by(key, generation, who)) is not None:
            entry.leader = ""
            entry.changed.set()

    async def publish(self, key: str, generation: int, who: str, header: dict[str, Any], data: Any) -> bool:
        """Take a leader's bundle (bytes, or a NumPy array of them); False, and nothing changed, if it was replaced."""
        entry = self._led_by(key, generation, who)
        if entry is None:
            return False
        kept = True
        try:
            await asyncio.to_thread(self._store.save, key, generation, memoryview(data), header)
        except OSError as error:
            kept = False
            logger.warning("no durable copy of %s: %s", key[:12], error)
        if self._led_by(key, generation, who) is None:  # replaced while the store was slow
            return False
        entry.header = {**header, "generation": generation, "durable": kept}
        self._hold(key, entry, data)
        entry.leader = ""
        entry.changed.set()
        return entry.ref is not None or kept

    def replace(self, key: str, generation: int, who: str) -> int:
        """Let a replica that compiled although it had restored `generation` publish what it compiled.

        Returns:
            The generation to publish under, or 0 if the entry is another by now, or somebody compiles it.
        """
        entry = self._entries.get(key)
        if entry is None or entry.generation != generation or entry.leader:
            return 0
        self._lead(key, entry, {}, who)
        return entry.generation

    def evict(self, key: str) -> bool:
        """Forget an entry, here and in the durable store; False if it is being compiled, or is not there."""
        entry = self._entries.get(key)
        if entry is not None and entry.leader:
            return False
        known = self._store.pointer(key) is not None or (entry is not None and bool(entry.header))
        self._entries.pop(key, None)
        (self._index or {}).pop(key, None)
        self._store.delete(key)
        return known

    def held_bytes(self) -> int:
        """How much of the object store the served bundles fill."""
        return sum(entry.size for entry in self._entries.values() if entry.ref is not None)

    def entries(self) -> dict[str, dict[str, Any]]:
        """Headers of everything published, here or in the durable store."""
        if self._index is None:
            self._index = dict(self._store.entries())
        live = {key: entry.header for key, entry in self._entries.items() if entry.header}
        return {**self._index, **live}

    async def _offer(self, key: str, entry: _Entry) -> dict[str, Any] | None:
        if entry.leader or not await self._served(key, entry):
            return None
        entry.used = time.monotonic()
        refs = [entry.ref] if entry.ref is not None else []
        return {"ref": refs, "header": entry.header, "generation": entry.generation}

    async def _served(self, key: str, entry: _Entry) -> bool:
        """Is there a bundle to serve? Reloads it from the durable store if it is not in memory."""
        if entry.ref is None and not entry.leader:
            pointer = await asyncio.to_thread(self._store.pointer, key)
            data = await asyncio.to_thread(self._store.load, key) if pointer else None
            if pointer is not None and data is not None and entry.ref is None and not entry.leader:
                entry.header = {**pointer, "durable": True}
                entry.generation = max(entry.generation, int(pointer.get("generation", 0)))
                self._hold(key, entry, data)
                return True
        return entry.ref is not None

    def _hold(self, key: str, entry: _Entry, data: Any) -> None:
        """Put a bundle into the object store, and drop what was asked for least recently if there is no room."""
        entry.ref, entry.size, entry.used = None, len(data), time.monotonic()
        held = sorted((e for e in self._entries.values() if e.ref is not None), key=lambda e: e.used)
        total = entry.size + sum(e.size for e in held)
        for old in held:
            if total > self._max_bytes and old.header.get("durable"):
                old.ref, total = None, total - old.size
        if total > self._max_bytes and entry.header.get("durable"):
            return
        try:
            entry.ref, entry.turns = ray.put(np.frombuffer(data, dtype=np.uint8)), Turns()
        except Exception as error:  # the object store is too small: the durable copy serves
            logger.warning("%s is not held in memory: %s", key[:12], error)

    def _led_by(self, key: str, generation: int, who: str) -> _Entry | None:
        """The entry that `who` leads. After a restart of this registry nobody leads: then the one who says so does."""
        entry = self._entries.get(key)
        if entry is None:
            if int((self._store.pointer(key) or {}).get("generation", 0)) >= generation:
                return None  # published by another, before the restart
            entry = self._entries[key] = _Entry(generation, who)
            entry.lease_until = time.monotonic() + self._lease_s
            entry.lead_until = time.monotonic() + self._lead_s
        return entry if entry.generation == generation and entry.leader == who else None

    def _lead(self, key: str, entry: _Entry, factors: dict[str, str], who: str) -> dict[str, Any]:
        if entry.leader:
            logger.warning("%s lost its lease on %s to %s", entry.leader, key[:12], who)
        entry.generation += 1
        entry.leader, entry.lease_until = who, time.monotonic() + self._lease_s
        entry.lead_until = time.monotonic() + self._lead_s
        others = [keys.differing(factors, header.get("factors", {})) for header in self.entries().values()]
        return {"generation": entry.generation, "nearest": min(others, key=len, default=None)}


def connect(namespace: str, store_uri: str, lease_s: float, lead_s: float, max_bytes: int) -> Any:
    """The cluster's registry, started if there is none. It uses no CPU of the cluster's and outlives its driver."""
    options = cluster_wide(ACTOR_NAME, namespace) | {"max_concurrency": _CALLS}
    return ray.remote(Registry).options(**options).remote(store_uri, lease_s, lead_s, max_bytes)
