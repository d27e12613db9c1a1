"""Several replicas of one model, cold and at once: how much CPU time goes into compiling, ours against stock vLLM."""

from __future__ import annotations

import statistics
from typing import Any

from orchestrator.bench import baseline
from orchestrator.bench.resources import make_room
from orchestrator.bench.result import BenchResult, Plot
from orchestrator.cluster import provenance
from orchestrator.config import AppConfig
from orchestrator.progress import Say
from orchestrator.runs import run


def measure(app: AppConfig, say: Say) -> BenchResult:
    """One cold replica, then `bench.batch` cold ones at once, stock and ours, round by round."""
    rows, ways = [], baseline.ways(app)
    for turn in range(app.bench.rounds):
        for way in ways:
            for number in (1, app.bench.batch):
                row = {"way": way, "replicas": number, "round": turn, **_cold(app, way, number, turn, say)}
                say("bench", f"round {turn}, {way}, {number} replicas: {row['compile_cpu_s']:.1f} s of CPU compiling")
                rows.append(row)
    numbers = (1, app.bench.batch)
    cpu = {way: {str(n): _median(rows, way, n, "compile_cpu_s") for n in numbers} for way in ways}
    one, many = map(str, numbers)
    loads = _median(rows, "ours", app.bench.batch, "load_cpu_s")
    summary = {
        "compile_cpu_s": cpu,
        "load_cpu_s": loads,
        "compile_cpu_ratio": round(cpu["ours"][many] / cpu["ours"][one], 2),
        "compile_and_load_cpu_ratio": round((cpu["ours"][many] + loads) / cpu["ours"][one], 2),
        "compile_cpu_ratio_of_stock": round(cpu["stock"][many] / cpu["stock"][one], 2),
        **{f"{w}_of_ours": round(cpu[w][many] / (cpu["ours"][many] + loads), 2) for w in ways if w != "ours"},
    }
    plots = (Plot("Seconds of CPU for compiling", "compile_cpu_s", ("way", "replicas", "round")),)
    well = all(row["compiled"] == 1 for row in rows if row["way"] == "ours")
    return BenchResult("contention", summary, rows, provenance.machine(), well, plots)


def _cold(app: AppConfig, way: str, number: int, turn: int, say: Say) -> dict[str, Any]:
    cell = baseline.cell(app, way)
    cell.replicas = number
    cell.graph_cache.store = f"{app.graph_cache.store}/{turn}-{number}"
    cell.graph_cache.node_folder = f"{app.graph_cache.node_folder}/{turn}-{number}"
    make_room(cell, number)
    with run.session(cell, say) as session:
        reports = session.fleet(cell).start(at_once=True)
    return {
        "compile_cpu_s": round(sum(r.facts.compile_cpu_s for r in reports if not r.facts.loaded), 2),
        "load_cpu_s": round(sum(r.facts.compile_cpu_s for r in reports if r.facts.loaded), 2),
        "last_first_token_s": round(max(report.first_token_s for report in reports), 2),
        "compiled": sum(report.facts.compiled > 0 for report in reports),
        "outcomes": " ".join(report.receipt.outcome.value for report in reports),
    }


def _median(rows: list[dict[str, Any]], way: str, number: int, name: str) -> float:
    found = [float(row[name]) for row in rows if (row["way"], row["replicas"]) == (way, number)]
    return round(statistics.median(found), 2)
