"""What the status page shows: how each replica started, told by the replicas themselves."""

from __future__ import annotations

import time
from typing import Any

import ray

from orchestrator.cluster.singletons import cluster_wide

NAME = "status-board"
_FORGET_S = 60.0  # a replica that has not been heard of for so long is gone


class Board:
    """Start reports of living replicas. A plain class; `connect` makes it an actor."""

    def __init__(self) -> None:
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

    @staticmethod
    def connect(namespace: str) -> Any:
        """The cluster's board, started if there is none; it uses no CPU of the cluster's."""
        return ray.remote(Board).options(**cluster_wide(NAME, namespace)).remote()
