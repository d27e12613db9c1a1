"""What Prometheus is told of a start stays told."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

pytest.importorskip("ray")
from ray.util.metrics import Gauge

from orchestrator import timeline
from orchestrator.engine.start_report import StartReport
from orchestrator.graph_cache.restore_result import Outcome, Receipt
from orchestrator.serve import metrics


def test_a_start_is_told_again_and_again_for_ray_forgets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, float, dict[str, str]]] = []

    def note(self: Any, value: float, tags: dict[str, str]) -> None:
        told.append((self.info["name"], value, tags))

    monkeypatch.setattr(Gauge, "set", note)
    monkeypatch.setattr(metrics, "_PERIOD_S", 0.0)
    phases = (timeline.Phase("plan", 0.0, 1.5), timeline.Phase("weights", 1.5, 2.0))
    report = StartReport("m#1", 3.5, Receipt(Outcome.hit), timeline.EngineFacts(), phases, pid=1)
    each = [
        ("orchestrator_start_phase_seconds", 1.5, {"model": "m", "replica": "m#1", "phase": "plan"}),
        ("orchestrator_start_phase_seconds", 2.0, {"model": "m", "replica": "m#1", "phase": "weights"}),
        ("orchestrator_start_seconds", 3.5, {"model": "m", "replica": "m#1"}),
        ("orchestrator_start_expected_seconds", 4.0, {"model": "m", "replica": "m#1"}),
        ("orchestrator_start_outcome", 1, {"model": "m", "replica": "m#1", "outcome": "hit"}),
    ]

    async def see_three() -> None:
        task = asyncio.create_task(metrics.keep_told("m", report, {"seconds": 4.0}))
        while len(told) < 3 * len(each):
            await asyncio.sleep(0)
        task.cancel()

    asyncio.run(see_three())
    assert told[: 3 * len(each)] == 3 * each
