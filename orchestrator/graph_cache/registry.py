"""The cluster's registry of compiled graphs: one actor that says who compiles, and serves what was compiled.

States of a key: empty -> led (one replica compiles under a lease) -> published, and -> led again where what
was published turned out to be of no use. A lease that is not renewed passes to
the next who asks, under a higher generation; a publish or a release of an older generation changes nothing.

The registry puts bundles into the object store itself, so that it owns them: an object dies with the worker that put
it. What it served is also in the durable store, from where a restarted registry serves it again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import ray

from orchestrator.graph_cache import key as keys
from orchestrator.graph_cache.store import Store

ACTOR_NAME = "graph-registry"
logger = logging.getLogger("orchestrator.registry")


@dataclass
class _Entry:
    generation: int = 0
    leader: str = ""
    lease_until: float = 0.0
    header: dict[str, Any] = field(default_factory=dict)
    ref: Any = None  # the bundle in the object store, owned by this actor
    changed: asyncio.Event = field(default_factory=asyncio.Event)


class Registry:
    """hit | lead | wait per key. A plain class; `connect` makes it an actor.

    Args:
        store_uri: where durable copies go.
        lease_s: seconds a leader may be silent before another takes over.
    """

    def __init__(self, store_uri: str, lease_s: float) -> None:
        self._store = Store(store_uri)
        self._lease_s = lease_s
        self._entries: dict[str, _Entry] = {}

    async def acquire(self, key: str, factors: dict[str, str], who: str, wait_s: float) -> dict[str, Any]:
        """Ask for a key's graphs; waits at most `wait_s` seconds for a replica that compiles them now.

        Returns:
            `waited`: whether there was anything to wait for.
            `outcome`: "hit" (with `ref`, a list of one object reference, and `header`), "lead" (with `generation` and
            `nearest`, the factors that differ from the nearest entry), or "timeout" (with `leader`).
        """
        entry = self._entries.setdefault(key, _Entry())
        deadline, waited = time.monotonic() + wait_s, False
        while True:
            if not entry.leader and await self._served(key, entry):
                found = {"ref": [entry.ref], "header": entry.header, "generation": entry.generation}
                return {"outcome": "hit", "waited": waited, **found}
            now = time.monotonic()
            if not entry.leader or now > entry.lease_until:
                return {"outcome": "lead", "waited": waited, **self._lead(key, entry, factors, who)}
            if now > deadline:
                return {"outcome": "timeout", "waited": waited, "leader": entry.leader}
            waited = True
            entry.changed.clear()
            pause = min(deadline - now, entry.lease_until - now) + 0.01
            try:
                await asyncio.wait_for(entry.changed.wait(), pause)
            except TimeoutError:
                continue

    def renew(self, key: str, generation: int) -> bool:
        """Heartbeat of a leader; False once it was replaced."""
        entry = self._entries.get(key)
        if entry is None or entry.generation != generation or not entry.leader:
            return False
        entry.lease_until = time.monotonic() + self._lease_s
        return True

    def release(self, key: str, generation: int) -> None:
        """A leader gives up (its start failed, or nothing can be shared); the next who asks leads."""
        entry = self._entries.get(key)
        if entry is not None and entry.generation == generation:
            entry.leader = ""
            self._wake(entry)

    async def publish(self, key: str, generation: int, header: dict[str, Any], data: Any) -> bool:
        """Take a leader's bundle; False, and nothing changed, if it was replaced meanwhile."""
        entry = self._entries.get(key)
        if entry is None or entry.generation != generation or not entry.leader:
            return False
        try:
            await asyncio.to_thread(self._store.save, key, generation, data, header)
        except OSError as error:
            logger.warning("no durable copy of %s: %s", key[:12], error)
        entry.ref, entry.header, entry.leader = ray.put(np.frombuffer(data, dtype=np.uint8)), header, ""
        self._wake(entry)
        return True

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

    def entries(self) -> dict[str, dict[str, Any]]:
        """Headers of everything published, here or in the durable store."""
        live = {key: entry.header for key, entry in self._entries.items() if entry.header}
        return {**dict(self._store.entries()), **live}

    async def _served(self, key: str, entry: _Entry) -> bool:
        """Is there a bundle to serve? Reloads it from the durable store if this process has not seen it."""
        if entry.ref is None and not entry.leader:
            pointer = await asyncio.to_thread(self._store.pointer, key)
            data = await asyncio.to_thread(self._store.load, key) if pointer else None
            if pointer is not None and data is not None and entry.ref is None:
                entry.ref, entry.header = ray.put(np.frombuffer(data, dtype=np.uint8)), pointer
                entry.generation = max(entry.generation, int(pointer.get("generation", 0)))
        return entry.ref is not None

    def _lead(self, key: str, entry: _Entry, factors: dict[str, str], who: str) -> dict[str, Any]:
        if entry.leader:
            logger.warning("%s lost its lease on %s to %s", entry.leader, key[:12], who)
        entry.generation += 1
        entry.leader, entry.lease_until = who, time.monotonic() + self._lease_s
        others = [keys.differing(factors, header.get("factors", {})) for header in self.entries().values()]
        return {"generation": entry.generation, "nearest": min(others, key=len, default=None)}

    @staticmethod
    def _wake(entry: _Entry) -> None:
        entry.changed.set()


def connect(namespace: str, store_uri: str, lease_s: float) -> Any:
    """The cluster's registry, started if there is none. It uses no CPU of the cluster's and outlives its driver."""
    remote = ray.remote(Registry)
    return remote.options(
        name=ACTOR_NAME,
        namespace=namespace,
        get_if_exists=True,
        lifetime="detached",
        num_cpus=0,
        max_restarts=-1,
        max_task_retries=3,
        max_concurrency=1000,
    ).remote(store_uri, lease_s)
