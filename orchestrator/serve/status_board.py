"""What the services of a cluster know of each other: how each replica started or is starting, and who is about to take
which place."""

from __future__ import annotations

import time
from typing import Any

import ray

from orchestrator.cluster.singletons import cluster_wide
from orchestrator.serve.start_history import StartHistory

NAME = "status-board-5"  # an older release on the same cluster has one that knows less
_FORGET_S = 60.0  # a replica that has not been heard of for so long is gone
_FORGET_START_S = 15.0  # it tells every second
_WORKERS = 4  # of an application; those before are of an older configuration, most likely
_CLAIM_S = 600.0  # by then Ray Serve lists the application, or the job is gone


class Board:
    """Start reports of living replicas, starts, and claims.

    A plain class; `connect` makes it an actor, which does one thing at a time.
    """

    def __init__(self) -> None:
        self._claims: dict[str, tuple[str, float]] = {}  # what -> who, and until when
        self._reports: dict[str, dict[str, Any]] = {}
        self._starts: dict[str, dict[str, Any]] = {}
        self._heard: dict[str, float] = {}
        self._workers: dict[str, list[str]] = {}
        self._history = StartHistory()

    def tell(self, report: dict[str, Any]) -> dict[str, float] | None:
        """A replica is ready, or still healthy; it tells every time, so that a restarted board knows it again.

        Returns:
            What was expected of its start; None: nothing.
        """
        name = report["replica"]
        start = self._starts.pop(name, {})
        if name in self._reports:
            report["expected"] = self._reports[name]["expected"]
        else:
            report["expected"] = start.get("expected") or report.get("expected")
            self._history.add(report)
        self._reports[name], self._heard[name] = report, time.monotonic()
        expected: dict[str, float] | None = report["expected"]
        return expected

    def tell_start(self, start: dict[str, Any]) -> None:
        """A replica is starting: `ReplicaStart.progress`, and its `node`."""
        if start["replica"] not in self._reports:  # a late word; each name is in one of the two
            where = {"node": start["node"], "restored": start["restored"]}
            start["expected"] = self._history.expected(start["model"], start["size"], **where)
            self._starts[start["replica"]] = start
            self._heard[start["replica"]] = time.monotonic()

    def replicas(self) -> list[dict[str, Any]]:
        """All that were heard of lately, the oldest first."""
        return self._lately(self._reports, _FORGET_S)

    def starts(self) -> list[dict[str, Any]]:
        """All that are starting, the oldest first."""
        return self._lately(self._starts, _FORGET_START_S)

    def tell_worker(self, app: str, environment: str) -> None:
        """An application's replica has this runtime environment; it tells every time, as of its report."""
        known = self._workers.setdefault(app, [])
        if environment not in known:
            known[:] = [*known, environment][-_WORKERS:]

    def workers(self, app: str) -> list[str]:
        """The runtime environments of an application's replicas, the newest last."""
        return self._workers.get(app, [])

    def expected(self, model: str, size: dict[str, int] | None) -> dict[str, float] | None:
        """What a start of a model takes; see `StartHistory.expected`."""
        return self._history.expected(model, size)

    def _lately(self, told: dict[str, dict[str, Any]], forget_s: float) -> list[dict[str, Any]]:
        now = time.monotonic()
        for name in [name for name in told if now - self._heard[name] > forget_s]:
            del self._heard[name], told[name]
        return list(told.values())

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
