"""What Prometheus is told of a replica's start, by way of Ray.

Ray passes a gauge on only if it was set since the last time, forgets it 20 s later (of Ray 2.60), and loses a counter's
step for good where its agent is busy at that moment. So these are all gauges, and are set for as long as the replica
lives.
"""

from __future__ import annotations

from collections.abc import Mapping

from ray.util.metrics import Gauge

from orchestrator.engine.start_report import StartReport
from orchestrator.serve.background import repeat

_PERIOD_S = 5.0  # half of Ray's own
_PHASE = Gauge(
    "orchestrator_start_phase_seconds", "Where a replica's start went.", tag_keys=("model", "replica", "phase")
)
_START = Gauge(
    "orchestrator_start_seconds", "From a replica's process to its first token.", tag_keys=("model", "replica")
)
_EXPECTED = Gauge(
    "orchestrator_start_expected_seconds",
    "What was expected of it, once it was known whether its graphs were there.",
    tag_keys=("model", "replica"),
)
_OUTCOME = Gauge(
    "orchestrator_start_outcome",
    "1 for each replica, with what the graph cache did for it.",
    tag_keys=("model", "replica", "outcome"),
)


def tell(model: str, report: StartReport, expected: Mapping[str, float] | None) -> None:
    """Set all gauges to what they are."""
    tags = {"model": model, "replica": report.replica}
    for phase in report.phases:
        _PHASE.set(phase.seconds, {**tags, "phase": phase.name})
    _START.set(report.first_token_s, tags)
    if expected:
        _EXPECTED.set(expected["seconds"], tags)
    _OUTCOME.set(1, {**tags, "outcome": report.receipt.outcome.value})


async def keep_told(model: str, report: StartReport, expected: Mapping[str, float] | None) -> None:
    """Set them again and again, until cancelled."""
    await repeat(lambda: tell(model, report, expected), _PERIOD_S, "Prometheus is not told of this start")
