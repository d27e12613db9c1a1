"""What bench=autoscale_check reads from Ray Serve's states, and what the simulated controller knows of the load."""

from __future__ import annotations

from typing import Any

import pytest
from ray.serve.config import AutoscalingConfig

from orchestrator.bench import autoscale_check as check
from orchestrator.bench.simulator.service import Replicas, simulate
from orchestrator.bench.simulator.traces import Trace


@pytest.mark.parametrize(
    ("numbers", "turns"), [([1, 1], 0), ([1, 2, 3], 1), ([1, 2, 2, 1, 1, 3], 3), ([3, 2, 1], 1), ([2], 0)]
)
def test_turns_are_counted(numbers: list[int], turns: int) -> None:
    assert check._turns(numbers) == turns


def test_a_start_lasts_from_the_decision_until_it_runs() -> None:
    def states(running: int, starting: int, stopping: int = 0) -> dict[str, int]:
        return {"RUNNING": running, "STARTING": starting, "STOPPING": stopping}

    seen = [
        (0.0, states(1, 0)),
        (1.0, states(1, 2)),  # two more are wanted
        (4.0, states(2, 1)),
        (5.0, states(2, 0, 1)),  # one of them no more
        (6.0, states(2, 1)),
        (9.0, states(3, 0)),
    ]
    assert check._starts(seen) == [3.0, 3.0]


def test_the_controller_learns_of_a_jump_by_the_next_report() -> None:
    told: list[tuple[float, float]] = []

    def policy(ctx: Any) -> tuple[float, dict[str, Any]]:
        told.append((ctx.current_time, float(ctx.total_num_requests)))
        return 1.0, {}

    config = AutoscalingConfig(min_replicas=1, max_replicas=1)
    jump = Trace("jump", 60.0, 5.0, lambda at: 5.0 if at >= 22.0 else 0.0)
    simulate(policy, config, jump, Replicas(1.0, slots=1000, answer_s=1000.0), 1)
    changes = [at for (at, load), (_, before) in zip(told[1:], told, strict=False) if load != before]
    assert changes == [31.0, 41.0, 51.0]  # every metrics_interval_s
    assert 0 < dict(told)[31.0] < 45.0  # a mean of samples, most of them before the jump
