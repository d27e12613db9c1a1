"""Requests that wait for a model's first replica: so many, and the others are told when to come back."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from orchestrator.serve import controller
from orchestrator.serve.background import repeat

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

    def enter(self, deployment: str) -> Callable[[bool], None]:
        """A request comes; returns what to call when its answer begins, with True, or when it goes, with False.

        Only the first of these calls counts.

        Raises:
            Full: too many wait already.
        """
        if self._running.get(deployment, 1):
            return lambda answered: None
        now = time.monotonic()
        began = self._began.setdefault(deployment, now)
        if self._waiting[deployment] >= self._most:
            left = self._took.get(deployment, self._guess) - (now - began)
            raise Full(max(1, math.ceil(left)))
        self._waiting[deployment] += 1
        inside = [True]

        def leave(answered: bool) -> None:
            if not inside:
                return
            inside.clear()
            self._waiting[deployment] -= 1
            if not answered and not self._waiting[deployment]:
                self._began.pop(deployment, None)  # nobody waits for this start any more

        return leave

    def waiting(self) -> dict[str, int]:
        """How many wait, for each deployment that is known to have no replica."""
        return {name: self._waiting[name] for name, running in self._running.items() if not running}

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
        await repeat(
            lambda: self.look(controller.deployments(self._application)),
            _PERIOD_S,
            "how many replicas run is not known",
        )
