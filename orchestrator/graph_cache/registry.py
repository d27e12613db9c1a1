"""The cluster's registry of compiled graphs: one actor that says who compiles, and serves what was compiled.

States of a key: empty -> led (one replica compiles under a lease) -> published, and -> led again where what was
published was of no use. A lease that is not renewed, or was held for too long, passes to the next who asks, under a
higher generation; a publish or a release by anyone but the leader changes nothing. docs/graph_cache.md: the protocol.

The registry puts bundles into the object store itself, so that it owns them: an object dies with the worker that put
it. Memory is bounded: what was asked for least recently is dropped from it, and served from the durable store again,
which is also where a restarted registry finds everything. A leader that outlives its registry is believed by the next.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from contextlib import suppress
from typing import Any

from orchestrator.graph_cache import key as keys
from orchestrator.graph_cache.entry import Entries, Entry
from orchestrator.graph_cache.store import Store
from orchestrator.graph_cache.store_index import Headers, StoreIndex

logger = logging.getLogger("orchestrator.registry")


class Registry:
    """hit | lead | wait per key. A plain class; registry_actor.py makes it an actor.

    Storage is asked in threads: a slow one does not keep a heartbeat waiting.

    Args:
        store_uri: where durable copies go.
        lease_s: seconds a leader may be silent before another takes over.
        lead_s: seconds a leader may take at most, silent or not.
        max_bytes: how much of the object store the served bundles may fill.
        restarted: leaders from before may be at work: they are waited for as long as a lease lasts.
    """

    def __init__(
        self, store_uri: str, lease_s: float, lead_s: float = 600.0, max_bytes: int = 1 << 30, restarted: bool = False
    ) -> None:
        self._store = Store(store_uri)
        self._lease_s = lease_s
        self._lead_s = lead_s
        self._leads_from = time.monotonic() + lease_s if restarted else 0.0
        self._entries = Entries(max_bytes)
        self._index = StoreIndex(self._store)

    async def acquire(self, key: str, factors: dict[str, str], who: str, wait_s: float) -> dict[str, Any]:
        """Ask for a key's graphs; waits at most `wait_s` seconds for a replica that compiles them now.

        Returns:
            `waited`: whether there was anything to wait for.
            `outcome`: "hit" (with `header`, and `ref`, a list of the bundle's object reference; it is empty where the
            object store has no room, and the bundle is then in the durable store alone), "lead" (with `generation`
            and `nearest`, the factors that differ from the nearest entry), or "timeout" (with `leader`).
        """
        deadline, waited = time.monotonic() + wait_s, False
        while True:
            if (found := await self.offer(key)) is not None:
                return {"outcome": "hit", "waited": waited, **found}
            entry, now = self._entry(key), time.monotonic()
            until = math.inf if entry.claims else entry.led_until() if entry.leader else self._leads_from
            if now > until or entry.leader == who:  # its first answer was lost, and it asks again
                if entry.leader not in ("", who) and not await self._lead_is_lost(key, entry):
                    continue  # look again
                return {"outcome": "lead", "waited": waited, **await self._lead(key, entry, factors, who)}
            if now > deadline:
                return {"outcome": "timeout", "waited": waited, "leader": entry.leader or "one from before a restart"}
            waited = True
            entry.changed.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(entry.changed.wait(), min(deadline, until) - now + 0.01)

    async def offer(self, key: str) -> dict[str, Any] | None:
        """What a hit has to install, as in `acquire`; None if there is nothing. Nobody leads by asking so."""
        entry = self._entry(key)
        if entry.leader or not await self._served(key, entry) or entry.leader or self._entries[key] is not entry:
            return None
        return entry.offer()

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

    async def renew(self, key: str, generation: int, who: str) -> bool:
        """Heartbeat of a leader; False once it was replaced, or has led for too long."""
        entry, now = await self._led_by(key, generation, who), time.monotonic()
        if entry is None or now > entry.lead_until:
            return False
        entry.lease_until = now + self._lease_s
        return True

    async def release(self, key: str, generation: int, who: str) -> None:
        """A leader gives up (its start failed, or nothing can be shared); the next who asks leads."""
        if (entry := await self._led_by(key, generation, who)) is not None:
            entry.end_lead()

    async def publish(self, key: str, generation: int, who: str, header: dict[str, Any], data: Any) -> bool:
        """Take a leader's bundle (bytes, or a NumPy array of them); False, and nothing changed, if it was replaced."""
        entry = await self._led_by(key, generation, who)
        if entry is None:
            return self._entry(key).published_by == (who, generation)  # its first answer was lost
        name, putting = "", asyncio.create_task(self._entries.put(data))  # while the durable copy is written
        try:
            name = await asyncio.to_thread(self._store.save, key, generation, memoryview(data))
        except OSError as error:
            logger.warning("no durable copy of %s: %s", key[:12], error)
        ref = await putting
        if not self._leads(entry, generation, who) or self._entries[key] is not entry:  # while the store was slow
            return entry.published_by == (who, generation)
        entry.header = {**header, "generation": generation, "durable": bool(name), "bundle": name}
        if self._entries.hold(entry, ref, len(data)) or name:
            entry.published_by = (who, generation)
        else:
            entry.header = {}
        entry.end_lead()
        return bool(entry.header)

    async def replace(self, key: str, generation: int, who: str) -> int:
        """Let a replica that compiled although it had restored `generation` publish what it compiled.

        Returns:
            The generation to publish under, or 0 if the entry is another by now, or somebody compiles it.
        """
        entry = self._entries.get(key)
        if entry is not None and entry.leader == who:
            return entry.generation  # its first answer was lost
        if entry is None or entry.generation != generation or entry.leader:
            return 0
        self._start_lead(key, entry, entry.generation + 1, who)
        return entry.generation

    async def evict(self, key: str) -> bool:
        """Forget an entry, here and in the durable store; False if it is being compiled, or is not there."""
        entry = self._entry(key)
        if entry.leader:
            return False
        known = bool(entry.header) or await asyncio.to_thread(self._store.header, key) is not None
        await asyncio.to_thread(self._store.delete, key)
        if not entry.leader and self._entries[key] is entry:
            self._entries[key] = Entry(entry.generation)  # generations go on; a load that is on its way is dropped
        self._index.forget(key)
        return known

    def held_bytes(self) -> int:
        """How much of the object store the served bundles fill."""
        return sum(entry.size for entry in self._entries.held())

    async def entries(self) -> dict[str, dict[str, Any]]:
        """Headers of everything published, here or in the durable store."""
        return {**await self._index.headers(), **self._live()}

    def _live(self) -> Headers:
        return {key: entry.header for key, entry in self._entries.items() if entry.header}

    def _entry(self, key: str) -> Entry:
        return self._entries.setdefault(key, Entry())

    async def _served(self, key: str, entry: Entry) -> bool:
        """Is there a bundle to serve? Loads it from the durable store if it is not in memory, once for all who ask."""
        if entry.ref is not None:
            return True
        if entry.loading is None:
            entry.loading = asyncio.create_task(self._load(key, entry))
            entry.loading.add_done_callback(lambda _: setattr(entry, "loading", None))
        return await asyncio.shield(entry.loading)

    async def _load(self, key: str, entry: Entry) -> bool:
        before = entry.header
        try:
            found = await asyncio.to_thread(self._store.find, key, before, self._entries.max_bytes)
            ref = await self._entries.put(found.data) if found and found.data else None
        except OSError as error:
            logger.warning("the durable store does not answer for %s: %s", key[:12], error)
            return False
        if entry.leader or entry.header is not before or self._entries.get(key) is not entry:
            return bool(entry.header)  # something was published meanwhile, or evicted
        if found is None:
            entry.header = {}
            return False
        entry.header = {**found.header, "durable": True}
        entry.generation = max(entry.generation, int(found.header["generation"]))
        if found.data:
            self._entries.hold(entry, ref, len(found.data))
        return True

    async def _led_by(self, key: str, generation: int, who: str) -> Entry | None:
        """The entry that `who` leads. A generation that is new to this registry was given before it was restarted."""
        entry = self._entry(key)
        if generation > entry.generation and not entry.header:
            with entry.claimed():
                published = await self._published(key)
            entry = self._entry(key)
            # still, and not published by another before the restart; an older leader's late word counts less
            if published < generation and generation > entry.generation and not entry.header:
                self._start_lead(key, entry, generation, who)
        return entry if self._leads(entry, generation, who) else None

    async def _lead_is_lost(self, key: str, entry: Entry) -> bool:
        """A leader is silent. Has nobody taken over by now, and no other cluster published what it was to publish?"""
        lead, published = (entry.leader, entry.generation), await self._published(key)
        if (entry.leader, entry.generation) != lead or time.monotonic() <= entry.led_until():
            return False
        if published < entry.generation:
            return True
        entry.header, entry.ref = {}, None  # an older one; what the store has is loaded
        entry.end_lead()
        return False

    async def _published(self, key: str) -> int:
        """The generation that the durable store has; 0 where it has none, or does not answer."""
        with suppress(OSError):
            header = await asyncio.to_thread(self._store.header, key)
            return int(header["generation"]) if header else 0
        return 0

    def _leads(self, entry: Entry, generation: int, who: str) -> bool:
        return entry.generation == generation and entry.leader == who

    def _start_lead(self, key: str, entry: Entry, generation: int, who: str) -> None:
        if entry.leader:
            logger.warning("%s lost its lease on %s to %s", entry.leader, key[:12], who)
        entry.generation, entry.leader = generation, who
        entry.lease_until = time.monotonic() + self._lease_s
        entry.lead_until = time.monotonic() + self._lead_s
        entry.changed.set()

    async def _lead(self, key: str, entry: Entry, factors: dict[str, str], who: str) -> dict[str, Any]:
        if entry.leader != who or time.monotonic() > entry.led_until():
            self._start_lead(key, entry, entry.generation + 1, who)
        entry.lease_until = time.monotonic() + self._lease_s
        generation = entry.generation
        headers = {**await self._index.soon(self._lease_s / 3), **self._live()}
        if self._leads(entry, generation, who):  # it can renew its lease only once it knows that it leads
            entry.lease_until = time.monotonic() + self._lease_s
        others = [keys.differing(factors, header.get("factors", {})) for header in headers.values()]
        return {"generation": generation, "nearest": min(others, key=len, default=None)}
