"""Steady prefill and decode throughput, in pairs: the same prompts, in turn, on engines that live together."""

from __future__ import annotations

import statistics
import time
from copy import deepcopy
from typing import Any

import ray

from orchestrator.bench.resources import make_room
from orchestrator.bench.result import BenchResult, Plot
from orchestrator.cluster import provenance
from orchestrator.config import AppConfig
from orchestrator.engine import Sampling
from orchestrator.fleet.fleet import Fleet
from orchestrator.progress import Say
from orchestrator.runs import run
from orchestrator.vllm_plugin import guard_cost

STOCK = "stock"


def measure(app: AppConfig, say: Say) -> BenchResult:
    """Stock vLLM and each mode, round by round: what disturbs one round disturbs all, and the order turns each time."""
    app = deepcopy(app)
    names = [STOCK, *(mode.value for mode in app.bench.modes)]
    make_room(app, len(names))
    seconds: dict[str, dict[str, list[float]]] = {name: {"prefill": [], "decode": []} for name in names}
    with run.session(app, say) as session:
        fleets = {name: _fleet(session, app, name) for name in names}
        for turn in range(app.bench.rounds + 1):
            for name in names if turn % 2 else reversed(names):
                say("bench", f"round {turn}, {name}")
                found = _batch(fleets[name], app, turn)
                for what, value in found.items() if turn else ():  # round 0 warms up
                    seconds[name][what].append(value)
        say("bench", "guard")
        guard_us = ray.get(ray.remote(guard_cost.microseconds).options(num_cpus=0).remote())
    rows = [_row(name, what, seconds) for name in names for what in ("prefill", "decode")]
    summary: dict[str, Any] = {"ratio_to_stock": {}, "ratio_to_split": {}, "guard_us_per_layer": round(guard_us, 2)}
    for row in rows:
        for base in ("stock", "split"):
            if row[f"of_{base}"] is not None:
                summary[f"ratio_to_{base}"].setdefault(row["mode"], {})[row["what"]] = row[f"of_{base}"]
    plots = (Plot("Seconds for a batch, median", "median_s", ("what", "mode")),)
    return BenchResult("throughput", summary, rows, provenance.machine(), plots=plots)


def _fleet(session: run.Session, app: AppConfig, name: str) -> Fleet:
    cell = deepcopy(app)
    cell.replicas, cell.fast_cold_start = 1, name != STOCK
    cell.cold_start.kv_update = next((m for m in app.bench.modes if m.value == name), app.cold_start.kv_update)
    fleet = session.fleet(cell, name)
    fleet.start()
    return fleet


def _batch(fleet: Fleet, app: AppConfig, turn: int) -> dict[str, float]:
    """Seconds for `bench.repeat` batches of long prompts (prefill), and for a batch of long answers (decode)."""
    bench, name = app.bench, fleet.plan.replicas[0].name
    prompts = [f"{i}: {app.workload.prompts[i % len(app.workload.prompts)]}" for i in range(bench.batch)]
    began = time.perf_counter()
    for again in range(bench.repeat):  # no two begin alike, so that no prefix is found in the cache
        fleet.ask_one(name, [f"{turn} {again} {p} " * 10 for p in prompts], Sampling(max_tokens=1))
    prefilled = time.perf_counter()
    asked = [f"{turn} {p}" for p in prompts]
    fleet.ask_one(name, asked, Sampling(max_tokens=bench.tokens, ignore_eos=True))
    return {"prefill": prefilled - began, "decode": time.perf_counter() - prefilled}


def _row(name: str, what: str, seconds: dict[str, dict[str, list[float]]]) -> dict[str, Any]:
    own = seconds[name][what]
    row: dict[str, Any] = {"mode": name, "what": what, "median_s": round(statistics.median(own), 3)}
    for base in ("stock", "split"):
        paired = [b / v for b, v in zip(seconds.get(base, {}).get(what, []), own, strict=False)]
        row[f"of_{base}"] = round(statistics.median(paired), 4) if paired else None
        row[f"of_{base}_spread"] = f"{min(paired):.3f}..{max(paired):.3f}" if paired else "-"
    return row
