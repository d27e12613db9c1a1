"""What the services of a cluster know of each other: how each replica started, and who is about to take which place."""

from __future__ import annotations

import time
from typing import Any

import ray

from orchestrator.cluster.singletons import cluster_wide

NAME = "status-board-2"  # an older release on the same cluster has one that knows no claims
_FORGET_S = 60.0  # a replica that has not been heard of for so long is gone
_CLAIM_S = 600.0  # by then Ray Serve lists the application, or the job is gone


class Board:
    """Start reports of living replicas, and claims. A plain class; `connect` makes it an actor, which does one thing
    at a time."""

    def __init__(self) -> None:
        self._claims: dict[str, tuple[str, float]] = {}  # what -> who, and until when
        self._reports: dict[str, dict[str, Any]] = {}
        self._heard: dict[str, float] = {}

    def tell(self, report: dict[str, Any]) -> None:
        """A replica is ready, or still healthy; it tells every time, so that a restarted board knows it again."""
        self._reports[report["replica"]] = report
        self._heard[report["replica"]] = time.monotonic()

    def replicas(self) -> list[dict[str, Any]]:
        """All that were heard of lately, the oldest first."""
        now = time.monotonic()
        for name in [name for name, heard in self._heard.items() if now - heard > _FORGET_S]:
            del self._heard[name], self._reports[name]
        return list(self._reports.values())

    def claim(self, places: list[str], who: str) -> bool:
        """Take places that nobody else may deploy to; False, and nothing taken, if another is about to."""
        now = time.monotonic()
        self._claims = {place: claim for place, claim in self._claims.items() if claim[1] > now}
        if any(self._claims.get(place, (who, 0.0))[0] != who for place in places):
            return False
        self._claims |= dict.fromkeys(places, (who, now + _CLAIM_S))
        return True

    def give_up(self, who: str) -> None:
        """The end of someone's claims."""
        self._claims = {place: claim for place, claim in self._claims.items() if claim[0] != who}

    @staticmethod
    def connect(namespace: str) -> Any:
        """The cluster's board, started if there is none; it uses no CPU of the cluster's."""
        return ray.remote(Board).options(**cluster_wide(NAME, namespace)).remote()
