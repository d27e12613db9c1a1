"""The cluster's actor that knows which node has which piece of which model."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, GetTimeoutError

from orchestrator.cluster.singletons import cluster_wide
from orchestrator.graph_cache import key as keys
from orchestrator.weights.listing import Listing
from orchestrator.weights.settings import Bounds
from orchestrator.weights.swarm import Errand, Swarm
from orchestrator.weights.waiting import Waiting

NAME = "weights-directory-"  # then a digest of this code: a driver of another version does not talk to this one
CODE = keys.source_digest(Path(__file__).parent)
_CALLS = 100_000  # each stream of each node waits in one
_ANSWER_S = 70.0  # some questions are held open for a while
_AWAY_S = 600.0  # a node that is dead is told from one that is slow, and the directory starts on another
_AGAIN_S = 1.0


class Unknown(Exception):
    """The directory does not know a node, or a model: it was restarted. Who asked joins again."""


class Unreadable(Exception):
    """No node can reach the origin, and no node has what is lacking."""


class Directory:
    """One swarm for each version of a model, and signing key."""

    def __init__(self) -> None:
        self._swarms: dict[str, Swarm] = {}
        self._waiting: dict[str, Waiting[asyncio.Future[Errand | None]]] = {}

    async def join(self, name: str, node: str, listing: Listing, bounds: Bounds, held: Mapping[int, str]) -> list[int]:
        """A node wants a model, or has it; see `Swarm.join`."""
        swarm = self._swarms.get(name)
        if swarm is None:
            patience_s = 2 * bounds.patience_s  # who fetches gives up first, and says so
            swarm = self._swarms[name] = Swarm(
                len(listing.pieces), listing.small, bounds.readers, bounds.streams, patience_s, time.monotonic
            )
            self._waiting[name] = Waiting()
        wrong = swarm.join(node, held)
        self._serve(name)
        return wrong

    async def next(
        self, name: str, node: str, wait_s: float, done: tuple[int, str] | None = None
    ) -> tuple[bool, Errand | None]:
        """What a node is to fetch next.

        Args:
            name: the swarm's.
            node: who asks.
            wait_s: how long to wait for something; where the node says what it has, it is answered at once.
            done: what it has fetched since: the piece, and its digest.

        Returns:
            Whether that is what the others have (see `Swarm.got`), and what is next; None: the node has all, or has to
            ask again.

        Raises:
            Unknown: it has not joined.
            Unreadable: nobody can give what it lacks.
        """
        swarm = self._swarm(name, node)
        right = swarm.got(node, *done) if done else True
        whole = swarm.complete(node)
        errand = None if whole else swarm.next(node)
        if done:
            self._serve(name)
            for stream in self._waiting[name].all(node) if whole else ():
                _tell(stream, None)
        if done or errand or whole:
            return right, errand
        if swarm.stuck():
            raise Unreadable(name)
        waiting: asyncio.Future[Errand | None] = asyncio.get_running_loop().create_future()
        self._waiting[name].add(node, waiting)
        try:
            return True, await asyncio.wait_for(waiting, wait_s)
        except TimeoutError:
            told = waiting.done() and not waiting.cancelled()  # at the last moment
            return True, waiting.result() if told else None
        finally:
            self._waiting[name].forget(waiting)

    async def failed(self, name: str, node: str, piece: int, source: str, gone: bool) -> None:
        """A node could not fetch a piece; see `Swarm.failed`. Raises Unknown."""
        self._swarm(name, node).failed(node, piece, source, gone=gone)
        self._serve(name)

    async def goes_on(self, name: str, node: str, piece: int) -> None:
        """A node fetches a piece still; see `Swarm.goes_on`. Raises Unknown."""
        self._swarm(name, node).goes_on(node, piece)

    async def rest(self, name: str, node: str) -> None:
        """A node fetches nothing any more."""
        if name in self._swarms:
            self._swarms[name].rest(node)
            self._serve(name)

    def _swarm(self, name: str, node: str) -> Swarm:
        swarm = self._swarms.get(name)
        if swarm is None or not swarm.knows(node):
            raise Unknown(node)
        return swarm

    def _serve(self, name: str) -> None:
        """Something has changed: tell those for whom there is something now, or all that there is nothing any more."""
        swarm, waiting = self._swarms[name], self._waiting[name]
        for stream, node, errand in waiting.turn(lambda node: swarm.next(node) if swarm.knows(node) else None):
            if not _tell(stream, errand):
                swarm.give_back(node, errand.piece)
        for stream in waiting.all() if swarm.stuck() else ():
            _tell(stream, Unreadable(name))


def _tell(waiting: asyncio.Future[Errand | None], what: Errand | Exception | None) -> bool:
    """Answer one that waits; False: it has given up."""
    if waiting.done():
        return False
    if isinstance(what, Exception):
        waiting.set_exception(what)
    else:
        waiting.set_result(what)
    return True


def connect(namespace: str) -> Any:
    """The directory, started if there is none. It uses no CPU of the cluster's and outlives its driver."""
    return ray.remote(Directory).options(**cluster_wide(f"{NAME}{CODE}", namespace), max_concurrency=_CALLS).remote()


def ask(directory: Any, question: str, *arguments: Any) -> Any:
    """What the directory answers to a question, which is one of its methods.

    While its node is gone it is asked again: Ray takes a while to notice, and its own retries are used up before that.

    Raises:
        RayTaskError: what the method raised.
        RayError: the directory is not back after `_AWAY_S`.
    """
    until = time.monotonic() + _AWAY_S
    while True:
        try:
            return ray.get(getattr(directory, question).remote(*arguments), timeout=_ANSWER_S)
        except (ActorUnavailableError, GetTimeoutError):
            if time.monotonic() > until:
                raise
        time.sleep(_AGAIN_S)
