"""What the registry knows of each key, and the bound on what it holds in memory."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import ray

from orchestrator.graph_cache.transfer_slots import Turns

logger = logging.getLogger("orchestrator.registry")


@dataclass
class Entry:
    """A key's state. `leader` is empty where nobody compiles; `header` is empty where nothing is published.

    Attributes:
        lead_until: the end of a lead, however often it is renewed.
        published_by: the leader of the last publish, so that a repeated call gets the same answer.
        ref: the bundle in the object store, owned by this actor.
        size: of that bundle.
        used: when it was last asked for.
        loading: the one load from the durable store, for all who ask meanwhile.
        turns: to fetch that bundle.
        claims: leaders from before a restart whose word is being checked; nobody else leads meanwhile.
    """

    generation: int = 0
    leader: str = ""
    lease_until: float = 0.0
    lead_until: float = 0.0
    published_by: tuple[str, int] = ("", 0)
    header: dict[str, Any] = field(default_factory=dict)
    ref: Any = None
    size: int = 0
    used: float = 0.0
    loading: asyncio.Task[bool] | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    turns: Turns = field(default_factory=Turns)
    claims: int = 0

    def led_until(self) -> float:
        """When another may take over."""
        return min(self.lease_until, self.lead_until)

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """While the durable store is asked about a leader from before a restart."""
        self.claims += 1
        try:
            yield
        finally:
            self.claims -= 1
            self.changed.set()

    def end_lead(self) -> None:
        """Nobody leads; all who wait look again."""
        self.leader = ""
        self.changed.set()

    def offer(self) -> dict[str, Any]:
        """What a hit has to install."""
        self.used = time.monotonic()
        return {
            "ref": [self.ref] if self.ref is not None else [],
            "header": self.header,
            "generation": self.generation,
        }


class Entries(dict[str, Entry]):
    """All keys; their bundles fill at most `max_bytes` of the object store."""

    def __init__(self, max_bytes: int) -> None:
        super().__init__()
        self.max_bytes = max_bytes
        self._putting = asyncio.Lock()

    def held(self) -> list[Entry]:
        """The entries with a bundle in the object store; what may go first is first."""
        found = [entry for entry in self.values() if entry.ref is not None]
        return sorted(found, key=lambda entry: (not entry.header.get("durable"), entry.used))

    async def put(self, data: Any) -> Any:
        """Put a bundle into the object store, before it is known whether it is to be held; a reference, or None.

        In a thread, as a gigabyte takes a second, and one at a time: what comes is not counted until it is held. What
        the durable store has as well makes room first; nothing is lost by that.

        Args:
            data: the bundle, bytes or an array of them.
        """
        if len(data) > self.max_bytes:
            return None
        async with self._putting:
            self._make_room(len(data), lose=False)
            try:
                return await asyncio.to_thread(ray.put, np.frombuffer(data, dtype=np.uint8))
            except Exception as error:  # the object store is too small: the durable copy serves
                logger.warning("a bundle of %d bytes is not held in memory: %s", len(data), error)
        return None

    def hold(self, entry: Entry, ref: Any, size: int) -> bool:
        """Hold an entry's bundle; False if there is no room.

        What was asked for least recently makes room, and of that first what the durable store has as well.

        Args:
            entry: whose; it holds another from then on, or none.
            ref: what `put` returned.
            size: the bundle's, in bytes.
        """
        entry.ref, entry.size, entry.used = None, size, time.monotonic()
        if ref is None:
            return False
        self._make_room(size, lose=True)
        entry.ref, entry.turns = ref, Turns()
        return True

    def _make_room(self, size: int, *, lose: bool) -> None:
        """Drop bundles until `size` bytes fit; with `lose` also those that are nowhere else."""
        held = self.held()
        total = size + sum(entry.size for entry in held)
        for old in held:
            durable = old.header.get("durable")
            if total > self.max_bytes and (durable or lose):
                old.ref, total = None, total - old.size
                if not durable:
                    old.header = {}  # it is nowhere any more
