"""Requests that wait for a model's first replica: so many; the others, and those whose start failed, are told."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from typing import Any

from orchestrator.serve import controller
from orchestrator.serve.background import repeat

_PERIOD_S = 1.0
_COMMENT_S = 10.0  # common proxies wait for 30 s or more
_GIVEN_UP = "REPLICA_STARTUP_FAILED"  # Ray Serve's word for a deployment whose replicas it starts no more
_NOTHING = object()


class Full(Exception):
    """No room for one more.

    Attributes:
        retry_after_s: whole seconds until there will be a replica, as far as is known.
    """

    def __init__(self, retry_after_s: int) -> None:
        super().__init__(retry_after_s)
        self.retry_after_s = retry_after_s


class StartFailed(Exception):
    """There will be no replica now; its text is the cause, in a line."""


class Place:
    """What a request has while it waits.

    Args:
        room: where.
        deployment: for whose replica.
    """

    def __init__(self, room: WaitingRoom, deployment: str) -> None:
        self._room, self._deployment = room, deployment
        self._lost, self._cause = asyncio.Event(), ""

    def leave(self, answered: bool) -> None:
        """Its answer begins, or it goes; only the first call counts."""
        self._room.left(self, self._deployment, answered)

    def lose(self, cause: str) -> None:
        """There is nothing to wait for any more."""
        self._cause = cause
        self._lost.set()

    async def watched(self, parts: AsyncIterator[Any], stream: bool) -> AsyncGenerator[Any, None]:
        """An answer's parts, as they come.

        Args:
            parts: the answer.
            stream: its client reads server-sent events. Until the first part there is a comment now and then, which
                clients pass over, so that no proxy on the way takes the connection for dead.

        Raises:
            StartFailed: the start failed before the first part.
        """
        first, lost = asyncio.ensure_future(anext(parts, _NOTHING)), asyncio.ensure_future(self._lost.wait())
        pause = _COMMENT_S if stream else None
        try:
            while not (await asyncio.wait({first, lost}, timeout=pause, return_when=asyncio.FIRST_COMPLETED))[0]:
                left = self._room.left_s(self._deployment)
                yield f": the first replica starts, {f'about {left} s' if left else 'a little'} more\n\n"
            if not first.done():
                raise StartFailed(self._cause)
            if (part := first.result()) is _NOTHING:
                return
            self.leave(answered=True)
            yield part
            async for part in parts:
                yield part
        finally:
            first.cancel()
            lost.cancel()
            self.leave(answered=False)


class WaitingRoom:
    """Who waits where no replica runs, by deployment.

    Args:
        application: the Ray Serve application's name.
        most: how many may wait for a deployment.
        start_s: how long a start takes, where nothing is known of it.
        foresee: says how long, for a deployment; None: it does not know. Asked in a thread.
    """

    def __init__(
        self, application: str, most: int, start_s: float, foresee: Callable[[str], float | None] = lambda name: None
    ) -> None:
        self._application, self._most, self._guess, self._foresee = application, most, start_s, foresee
        self._running: dict[str, int] = {}  # what is not known has replicas
        self._places: dict[str, set[Place]] = {}
        self._failed: dict[str, str] = {}  # why no replica starts
        self._began: dict[str, float] = {}  # when the first one came
        self._took: dict[str, float] = {}
        self._foreseen: dict[str, float] = {}

    def enter(self, deployment: str) -> Place | None:
        """A request comes; None: there is nothing to wait for.

        Raises:
            Full: too many wait already.
            StartFailed: Ray Serve has given up. It tries again when the application is deployed anew.
        """
        if self._running.get(deployment, 1):
            return None
        if deployment in self._failed:
            raise StartFailed(self._failed[deployment])
        places = self._places.setdefault(deployment, set())
        self._began.setdefault(deployment, time.monotonic())
        if len(places) >= self._most:
            raise Full(max(1, self.left_s(deployment)))
        places.add(place := Place(self, deployment))
        return place

    def left_s(self, deployment: str) -> int:
        """Whole seconds that a start still takes, as foreseen, or as long as the last one; 0: it takes longer."""
        now = time.monotonic()
        whole = self._foreseen.get(deployment) or self._took.get(deployment, self._guess)
        return max(0, math.ceil(whole - (now - self._began.get(deployment, now))))

    def left(self, place: Place, deployment: str, answered: bool) -> None:
        """A place is free."""
        places = self._places[deployment]
        if place not in places:
            return
        places.remove(place)
        if not answered and not places:
            self._began.pop(deployment, None)  # nobody waits for this start any more

    def waiting(self) -> dict[str, int]:
        """How many wait, for each deployment that is known to have no replica."""
        return {name: len(self._places.get(name, ())) for name, running in self._running.items() if not running}

    def expect(self, foreseen: Mapping[str, float]) -> None:
        """Take note of how long starts take, in seconds, as far as that is known."""
        self._foreseen |= foreseen

    def look(self, deployments: Mapping[str, Any]) -> None:
        """Take note of how many replicas run, and of what failed.

        Args:
            deployments: of `serve.status()`.
        """
        self._running = {name: int(found.replica_states.get("RUNNING", 0)) for name, found in deployments.items()}
        for name in [name for name in self._began if self._running.get(name, 1)]:
            self._took[name] = time.monotonic() - self._began.pop(name)
        given_up = {name: found for name, found in deployments.items() if found.status_trigger == _GIVEN_UP}
        self._failed = {name: _cause(d.message) for name, d in given_up.items() if not self._running[name]}
        for name, cause in self._failed.items():
            for place in self._places.get(name, ()):
                place.lose(cause)

    async def run(self) -> None:
        """Look every second, until cancelled; while Ray Serve does not answer, what was last known counts."""
        loop = asyncio.get_running_loop()

        def step() -> None:
            found = controller.deployments(self._application)
            idle = [name for name, its in found.items() if not its.replica_states.get("RUNNING", 0)]
            loop.call_soon_threadsafe(self.look, found)
            foreseen = {name: seconds for name in idle if (seconds := self._foresee(name)) is not None}
            loop.call_soon_threadsafe(self.expect, foreseen)

        await repeat(step, _PERIOD_S, "how many replicas run is not known")


def _cause(message: str) -> str:
    """The last line of what Ray Serve says, which is the error's own."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return lines[-1][:500] if lines else "Ray Serve gives no cause"
