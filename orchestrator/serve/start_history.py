"""The starts that a cluster has seen, and what they say of those to come."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from orchestrator.timeline.forecast import Expected, Forecast, Seen, Size

_MOST = 256


class StartHistory:
    """By replica, the latest last."""

    def __init__(self) -> None:
        self._seen: dict[str, Seen] = {}
        self._sizes: dict[str, Size] = {}  # by model
        self._nodes: set[str] = set()
        self._known: dict[tuple[Size, bool, bool], Expected] = {}  # until another start was seen
        self._forecast = Forecast([])

    def add(self, report: Mapping[str, Any]) -> None:
        """Take a start that is over, once.

        Args:
            report: `StartReport.as_dict`, with `model` and `node`.
        """
        seen = Seen.of(report, fresh=report["node"] not in self._nodes)
        if seen is None or report["replica"] in self._seen:
            return
        self._seen[report["replica"]], self._sizes[report["model"]] = seen, seen.size
        self._nodes.add(report["node"])
        while len(self._seen) > _MOST:
            del self._seen[next(iter(self._seen))]
        self._known, self._forecast = {}, Forecast(list(self._seen.values()))

    def expected(
        self, model: str, size: Mapping[str, int] | None, *, node: str = "", restored: bool | None = None
    ) -> dict[str, float] | None:
        """What a start takes: `seconds`, `low`, `high`; None where the model's size is not known, or no start was seen.

        Args:
            model: its name.
            size: fields of `Size`; None: that of the model's last start.
            node: where it is; "": on one that is as those that were seen.
            restored: its graphs are there; None: not known, so as before for a model of this size.
        """
        found = Size(**size) if size else self._sizes.get(model)
        if found is None or not self._seen:
            return None
        if restored is None:
            restored = any(seen.size == found for seen in self._seen.values())
        kind = (found, not restored, bool(node) and node not in self._nodes)
        if kind not in self._known:
            self._known[kind] = self._forecast.expected(found, compiled=kind[1], fresh=kind[2])
        return {name: round(value, 2) for name, value in asdict(self._known[kind]).items()}
