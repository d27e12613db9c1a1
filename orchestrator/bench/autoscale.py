"""Ray Serve's own autoscaling policy against ours, simulated: requests that wait too long, and what replicas cost."""

from __future__ import annotations

from typing import Any

from ray.serve.autoscaling_policy import default_autoscaling_policy
from ray.serve.config import AutoscalingConfig

from orchestrator.bench.result import BenchResult, Plot
from orchestrator.bench.simulator.service import Outcome, Replicas, simulate
from orchestrator.bench.simulator.traces import Trace, traces
from orchestrator.cluster import provenance
from orchestrator.config import AppConfig, Autoscaling
from orchestrator.progress import Say
from orchestrator.serve.autoscaling import AheadPolicy


def measure(app: AppConfig, say: Say) -> BenchResult:
    """Every load with every start time, under both policies; each of `bench.rounds` is a seed."""
    serve = app.serve
    config = AutoscalingConfig(
        min_replicas=serve.min_replicas,
        max_replicas=serve.max_replicas,
        target_ongoing_requests=serve.target_ongoing_requests,
        upscale_delay_s=serve.upscale_delay_s,
        downscale_delay_s=serve.downscale_delay_s,
    )
    rows: list[dict[str, Any]] = []
    for seed in range(app.bench.rounds):
        for trace in traces(seed):
            for start_s in app.bench.starts_s:
                like = Replicas(start_s, app.engine.max_num_seqs)
                for policy in Autoscaling:
                    scales = AheadPolicy(start_s) if policy is Autoscaling.ahead else default_autoscaling_policy
                    rows.append(_row(policy, trace, start_s, seed, simulate(scales, config, trace, like, seed)))
            say("bench", f"seed {seed}, {trace.name}")
    summary = {
        "requests": sum(row["requests"] for row in rows if row["policy"] == "reactive"),
        "misses": {p.value: sum(row["misses"] for row in rows if row["policy"] == p.value) for p in Autoscaling},
        "replica_seconds": {
            p.value: sum(row["replica_seconds"] for row in rows if row["policy"] == p.value) for p in Autoscaling
        },
        "by_load": {
            f"{trace.name}, {start_s:g} s": _against(rows, trace.name, start_s)
            for trace in traces(0)
            for start_s in app.bench.starts_s
        },
    }
    plots = (Plot("Requests whose first token came late", "misses", ("load", "policy"), "start_s"),)
    return BenchResult("autoscale", summary, rows, provenance.machine(), bool(rows), plots)


def _row(policy: Autoscaling, trace: Trace, start_s: float, seed: int, found: Outcome) -> dict[str, Any]:
    return {
        "policy": policy.value,
        "load": trace.name,
        "foreseen": trace.foreseen,
        "start_s": start_s,
        "round": seed,
        "requests": found.requests,
        "misses": found.misses,
        "replica_seconds": round(found.replica_s),
        "turns": found.changes,
    }


def _against(rows: list[dict[str, Any]], load: str, start_s: float) -> dict[str, float]:
    """Ours over Ray Serve's, all seeds together."""
    of = {
        policy: [r for r in rows if (r["policy"], r["load"], r["start_s"]) == (policy, load, start_s)]
        for policy in ("reactive", "ahead")
    }
    sums = {
        name: {policy: sum(row[name] for row in found) for policy, found in of.items()}
        for name in ("misses", "replica_seconds", "turns", "requests")
    }
    return {
        "missed_reactive": round(sums["misses"]["reactive"] / max(1, sums["requests"]["reactive"]), 4),
        "missed_ahead": round(sums["misses"]["ahead"] / max(1, sums["requests"]["ahead"]), 4),
        "misses_ratio": round(sums["misses"]["ahead"] / max(1, sums["misses"]["reactive"]), 3),
        "replica_seconds_ratio": round(sums["replica_seconds"]["ahead"] / sums["replica_seconds"]["reactive"], 3),
        "turns_ratio": round(sums["turns"]["ahead"] / max(1, sums["turns"]["reactive"]), 3),
    }
