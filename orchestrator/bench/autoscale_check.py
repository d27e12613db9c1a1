"""Is the simulated service of bench=autoscale like a real one? The same load meets both, under both policies.

The real one is a whole service of ours, with Ray Serve's own autoscaler and router; its engine is the fake one, which
starts and answers in given times. The simulator is given the start that was measured.
"""

from __future__ import annotations

import random
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from itertools import pairwise
from typing import Any

from orchestrator.bench.autoscale import simulated
from orchestrator.bench.open_load import Ask, ask
from orchestrator.bench.resources import make_room
from orchestrator.bench.result import BenchResult, Plot
from orchestrator.bench.simulator.service import Outcome, Replicas
from orchestrator.bench.simulator.traces import Trace
from orchestrator.cluster import provenance
from orchestrator.config import AppConfig, Autoscaling, EngineKind
from orchestrator.progress import Say
from orchestrator.serve.controller import model_states
from orchestrator.serve.launch import serving

_WAVES = 4
_POLL_S = 0.5
_TOKEN_S = 0.05


def measure(app: AppConfig, say: Say) -> BenchResult:
    """`bench.seconds` of square waves on a real service and a simulated one; each of `bench.rounds` is a seed."""
    rows: list[dict[str, Any]] = []
    wave = app.bench.seconds / _WAVES
    trace = Trace("square waves", app.bench.seconds, 4.0, lambda at: 4.0 if at % wave >= wave / 2 else 0.7)
    for seed in range(app.bench.rounds):
        for start_s in app.bench.starts_s:
            for policy in Autoscaling:
                about = {"policy": policy.value, "start_s": start_s, "round": seed}
                real, took_s, failed = _service(app, policy, start_s, trace, seed, say)
                like = Replicas(took_s, app.engine.max_num_seqs)
                made = simulated(app, policy, start_s, trace, like, seed)
                rows.append(_row("service", about, real, took_s, failed))
                rows.append(_row("simulated", about, made, took_s, 0))
                say("bench", f"{policy.value}, {start_s:g} s: {_against(rows[-2:])}")
    summary = {
        f"{policy.value}, {start_s:g} s": _against(
            [row for row in rows if (row["policy"], row["start_s"]) == (policy.value, start_s)]
        )
        for policy in Autoscaling
        for start_s in app.bench.starts_s
    }
    plots = (
        Plot("Requests whose first token came late", "misses", ("way", "policy", "start_s", "round")),
        Plot("Seconds of all replicas", "replica_seconds", ("way", "policy", "start_s", "round")),
    )
    well = all(row["failed"] == 0 for row in rows)
    return BenchResult("autoscale_check", summary, rows, provenance.machine(), well, plots)


def _row(way: str, about: dict[str, Any], found: Outcome, took_s: float, failed: int) -> dict[str, Any]:
    return {
        "way": way,
        **about,
        "requests": found.requests,
        "misses": found.misses,
        "replica_seconds": round(found.replica_s),
        "turns": found.changes,
        "measured_start_s": round(took_s, 2),
        "failed": failed,
    }


def _against(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The simulation's figures over the service's, all seeds together."""
    total = {
        way: {
            name: sum(row[name] for row in rows if row["way"] == way)
            for name in ("requests", "misses", "replica_seconds", "turns")
        }
        for way in ("service", "simulated")
    }
    real, made = total["service"], total["simulated"]
    return {
        "late": {way: round(found["misses"] / max(1, found["requests"]), 4) for way, found in total.items()},
        "replica_seconds_ratio": round(made["replica_seconds"] / max(1, real["replica_seconds"]), 3),
        "turns": {way: found["turns"] for way, found in total.items()},
    }


def _service(
    app: AppConfig, policy: Autoscaling, start_s: float, trace: Trace, seed: int, say: Say
) -> tuple[Outcome, float, int]:
    """What the real one did, how long its starts took (median, seconds), and how many requests failed."""
    cell, like = deepcopy(app), Replicas(start_s, app.engine.max_num_seqs)
    cell.engine.kind, cell.serve.autoscaling, cell.serve.start_s = EngineKind.fake, policy, start_s
    cell.engine.extra = {"fake_start_s": start_s, "fake_token_s": _TOKEN_S, "fake_slots": like.slots}
    make_room(cell, cell.serve.max_replicas)
    draw = random.Random(seed)
    seconds = (draw.lognormvariate(0, 0.5) * like.answer_s for _ in iter(int, 1))
    asked = [Ask(at, max(1, round(s / _TOKEN_S))) for at, s in zip(trace.arrivals(seed), seconds, strict=False)]
    with serving(cell, say) as service, _watch(cell) as seen:
        took = ask(service, asked)
    answered = [(each, s) for each, s in zip(asked, took, strict=True) if s is not None]
    misses = sum(s - each.tokens * _TOKEN_S > like.late_s for each, s in answered)
    counts = [states for at, states in seen if at < trace.seconds]
    replica_s = statistics.fmean(sum(states.values()) for states in counts) * trace.seconds
    outcome = Outcome(len(asked), misses, replica_s, _turns([_wanted(states) for states in counts]))
    starts = _starts(seen)
    return outcome, statistics.median(starts) if starts else start_s, len(asked) - len(answered)


@contextmanager
def _watch(app: AppConfig) -> Iterator[list[tuple[float, dict[str, int]]]]:
    """Within, Ray Serve's states of replicas are noted: seconds since now, and how many there are of each."""
    seen: list[tuple[float, dict[str, int]]] = []
    over, began = threading.Event(), time.monotonic()

    def look() -> None:
        while not over.wait(_POLL_S):
            states = model_states(app.serve.name)
            seen.append((time.monotonic() - began, states))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def _wanted(states: dict[str, int]) -> int:
    return sum(number for state, number in states.items() if state != "STOPPING")


def _turns(wanted: list[int]) -> int:
    """How often the number of replicas turned from growing to shrinking, or back."""
    steps = [b > a for a, b in pairwise(wanted) if a != b]
    return bool(steps) + sum(a != b for a, b in pairwise(steps))


def _starts(seen: list[tuple[float, dict[str, int]]]) -> list[float]:
    """Seconds from when more replicas were there, of whatever state, until as many were running."""
    found: list[float] = []
    asked: list[tuple[float, int]] = []
    before = _wanted(seen[0][1]) if seen else 0
    for at, states in seen:
        wanted, running = _wanted(states), states.get("RUNNING", 0)
        asked += [(at, number) for number in range(before + 1, wanted + 1)]
        asked = [(began, number) for began, number in asked if number <= wanted]
        found += [at - began for began, number in asked if number <= running]
        asked = [(began, number) for began, number in asked if number > running]
        before = wanted
    return found
