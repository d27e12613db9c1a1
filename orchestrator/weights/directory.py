"""The cluster's actor that knows which node has which piece of which model."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray

from orchestrator.cluster.singletons import cluster_wide
from orchestrator.graph_cache import key as keys
from orchestrator.weights.listing import Listing
from orchestrator.weights.settings import Bounds
from orchestrator.weights.swarm import Errand, Swarm

NAME = "weights-directory-"  # then a digest of this code: a driver of another version does not talk to this one
CODE = keys.source_digest(Path(__file__).parent)
_CALLS = 100_000  # each stream of each node waits in one
_LOOK_S = 1.0  # an errand may be lost without a word


class Unknown(Exception):
    """The directory does not know a node, or a model: it was restarted. Who asked joins again."""


class Unreadable(Exception):
    """No node can reach the origin, and no node has what is lacking."""


class Directory:
    """One swarm for each version of a model, and signing key."""

    def __init__(self) -> None:
        self._swarms: dict[str, Swarm] = {}
        self._changed: dict[str, asyncio.Event] = {}

    async def join(self, name: str, node: str, listing: Listing, bounds: Bounds, held: Mapping[int, str]) -> list[int]:
        """A node wants a model, or has it; see `Swarm.join`."""
        swarm = self._swarms.get(name)
        if swarm is None:
            patience_s = 2 * bounds.patience_s  # who fetches gives up first, and says so
            swarm = self._swarms[name] = Swarm(
                len(listing.pieces), listing.small, bounds.readers, bounds.streams, patience_s, time.monotonic
            )
        wrong = swarm.join(node, held)
        self._wake(name)
        return wrong

    async def next(self, name: str, node: str, wait_s: float) -> Errand | None:
        """What a node is to fetch next; None: it has all, or has to ask again.

        Raises:
            Unknown: it has not joined.
            Unreadable: nobody can give what it lacks.
        """
        until = time.monotonic() + wait_s
        while True:
            swarm = self._swarm(name, node)
            if swarm.complete(node):
                return None
            if (errand := swarm.next(node)) is not None:
                return errand
            if swarm.stuck():
                raise Unreadable(name)
            left = until - time.monotonic()
            if left <= 0:
                return None
            changed = self._changed.setdefault(name, asyncio.Event())
            try:
                await asyncio.wait_for(changed.wait(), min(left, _LOOK_S))
            except TimeoutError:
                continue

    async def got(self, name: str, node: str, piece: int, digest: str) -> bool:
        """A node has fetched a piece; see `Swarm.got`. Raises Unknown."""
        right = self._swarm(name, node).got(node, piece, digest)
        self._wake(name)
        return right

    async def failed(self, name: str, node: str, piece: int, source: str, gone: bool) -> None:
        """A node could not fetch a piece; see `Swarm.failed`. Raises Unknown."""
        self._swarm(name, node).failed(node, piece, source, gone=gone)
        self._wake(name)

    async def rest(self, name: str, node: str) -> None:
        """A node fetches nothing any more."""
        if name in self._swarms:
            self._swarms[name].rest(node)
            self._wake(name)

    def _swarm(self, name: str, node: str) -> Swarm:
        swarm = self._swarms.get(name)
        if swarm is None or not swarm.knows(node):
            raise Unknown(node)
        return swarm

    def _wake(self, name: str) -> None:
        if (waiting := self._changed.pop(name, None)) is not None:
            waiting.set()


def connect(namespace: str) -> Any:
    """The directory, started if there is none. It uses no CPU of the cluster's and outlives its driver."""
    return ray.remote(Directory).options(**cluster_wide(f"{NAME}{CODE}", namespace), max_concurrency=_CALLS).remote()
