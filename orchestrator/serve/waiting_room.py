"""Requests that wait for a model's first replica: so many, and the others are told when to come back."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from ray import serve

logger = logging.getLogger("ray.serve")
_PERIOD_S = 1.0


class Full(Exception):
    """No room for one more.

    Attributes:
        retry_after_s: whole seconds until there will be a replica, as far as is known.
    """

    def __init__(self, retry_after_s: int) -> None:
        super().__init__(retry_after_s)
        self.retry_after_s = retry_after_s


class WaitingRoom:
    """Who waits where no replica runs, by deployment.

    Args:
        application: the Ray Serve application's name.
        most: how many may wait for a deployment.
        start_s: how long a start takes, until one was seen.
    """

    def __init__(self, application: str, most: int, start_s: float) -> None:
        self._application, self._most, self._guess = application, most, start_s
        self._running: dict[str, int] = {}  # what is not known has replicas
        self._waiting: Counter[str] = Counter()
        self._began: dict[str, float] = {}  # when the first one came
        self._took: dict[str, float] = {}

    def enter(self, deployment: str) -> Callable[[], None]:
        """A request comes; returns what to call, once or more often, when its answer begins or it goes.

        Raises:
            Full: too many wait already.
        """
        if self._running.get(deployment, 1):
            return lambda: None
        now = time.monotonic()
        began = self._began.setdefault(deployment, now)
        if self._waiting[deployment] >= self._most:
            left = self._took.get(deployment, self._guess) - (now - began)
            raise Full(max(1, math.ceil(left)))
        self._waiting[deployment] += 1
        inside = [True]

        def leave() -> None:
            if inside and inside.pop():
                self._waiting[deployment] -= 1

        return leave

    def look(self, deployments: Mapping[str, Any]) -> None:
        """Take note of how many replicas run.

        Args:
            deployments: of `serve.status()`.
        """
        self._running = {name: int(found.replica_states.get("RUNNING", 0)) for name, found in deployments.items()}
        for name in [name for name in self._began if self._running.get(name, 1)]:
            self._took[name] = time.monotonic() - self._began.pop(name)

    async def run(self) -> None:
        """Look every second, until cancelled; while Ray Serve does not answer, what was last known counts."""
        while True:
            try:
                found = (await asyncio.to_thread(serve.status)).applications.get(self._application)
                self.look(found.deployments if found else {})
            except Exception as error:
                logger.warning("how many replicas run is not known: %s: %s", type(error).__name__, error)
            await asyncio.sleep(_PERIOD_S)
