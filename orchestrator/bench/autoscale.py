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
from orchestrator.serve.autoscaling import AheadPolicy, settings


def measure(app: AppConfig, say: Say) -> BenchResult:
    """Every load with every start time, under both policies; each of `bench.rounds` is a seed."""
    rows: list[dict[str, Any]] = []
    for seed in range(app.bench.rounds):
        for trace in traces(seed):
            for start_s in app.bench.starts_s:
                like = Replicas(start_s, app.engine.max_num_seqs)
                for policy in Autoscaling:
                    rows.append(_row(policy, trace, start_s, seed, simulated(app, policy, start_s, trace, like, seed)))
            say("bench", f"seed {seed}, {trace.name}")
    summary = {
        "requests": _total(rows, "requests")["reactive"],
        "misses": _total(rows, "misses"),
        "replica_seconds": _total(rows, "replica_seconds"),
        "by_load": {
            f"{trace.name}, {start_s:g} s": _against(
                [r for r in rows if (r["load"], r["start_s"]) == (trace.name, start_s)]
            )
            for trace in traces(0)
            for start_s in app.bench.starts_s
        },
    }
    plots = (Plot("Requests whose first token came late", "misses", ("load", "policy"), "start_s"),)
    return BenchResult("autoscale", summary, rows, provenance.machine(), plots=plots)


def simulated(app: AppConfig, policy: Autoscaling, guess_s: float, trace: Trace, like: Replicas, seed: int) -> Outcome:
    """Let a load meet one of the two policies, with the service's own delays and bounds; see `simulate`.

    Args:
        guess_s: how long a start takes, for `ahead` until it has seen one.
    """
    scales = AheadPolicy(guess_s) if policy is Autoscaling.ahead else default_autoscaling_policy
    return simulate(scales, AutoscalingConfig(**settings(app.serve)), trace, like, seed)


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


def _total(rows: list[dict[str, Any]], name: str) -> dict[str, int]:
    """A column's sum for each policy."""
    return {p.value: sum(row[name] for row in rows if row["policy"] == p.value) for p in Autoscaling}


def _against(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Ours over Ray Serve's, all seeds together."""
    names = ("requests", "misses", "replica_seconds", "turns")
    requests, misses, seconds, turns = (_total(rows, name) for name in names)
    missed = {f"missed_{p}": round(misses[p] / max(1, requests[p]), 4) for p in misses}
    return missed | {
        "misses_ratio": round(misses["ahead"] / max(1, misses["reactive"]), 3),
        "replica_seconds_ratio": round(seconds["ahead"] / seconds["reactive"], 3),
        "turns_ratio": round(turns["ahead"] / max(1, turns["reactive"]), 3),
    }
