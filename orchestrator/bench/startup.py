"""From the request to the first token: stock vLLM cold and warm, ours cold, warm and from stand-by, in one run."""

from __future__ import annotations

import statistics
from copy import deepcopy
from dataclasses import asdict
from typing import Any

from orchestrator import run
from orchestrator.bench.result import BenchResult
from orchestrator.bench.room import make_room
from orchestrator.config import AppConfig
from orchestrator.replica import StartReport
from orchestrator.run import Say

WAYS = ("stock_cold", "stock_warm", "ours_cold", "ours_warm", "ours_pool")


def measure(app: AppConfig, say: Say) -> BenchResult:
    """Every way in each round, one start at a time, each replica stopped before the next one starts."""
    app = deepcopy(app)
    make_room(app, 3)
    rows: list[dict[str, Any]] = []
    with run.session(app, say) as session:
        for turn in range(app.bench.rounds):
            for stock in (True, False):
                for way, report, idle in _starts(session, app, stock=stock, label=f"{turn}-{stock}"):
                    say("bench", f"round {turn}, {way}: {report.first_token_s:.1f} s")
                    rows.append(_row(way, turn, report, idle))
    found = {way: [r["first_token_s"] for r in rows if r["way"] == way] for way in WAYS}
    summary: dict[str, Any] = {"first_token_s": {way: round(statistics.median(s), 2) for way, s in found.items()}}
    summary["spread_s"] = {way: [min(s), max(s)] for way, s in found.items()}
    for base in ("stock_cold", "stock_warm"):
        paired = {way: [b / s for b, s in zip(found[base], found[way], strict=True)] for way in WAYS[2:]}
        summary[f"sooner_than_{base}"] = {way: round(statistics.median(p), 2) for way, p in paired.items()}
    summary["idle_mib"] = max(r["idle_mib"] for r in rows)
    return BenchResult("startup", summary, rows, run.machine(), all(r["ok"] for r in rows))


def _starts(session: run.Session, app: AppConfig, *, stock: bool, label: str) -> list[tuple[str, StartReport, float]]:
    """The ways of one kind of replica. They share a cache that starts out empty."""
    cell = deepcopy(app)
    cell.fast_cold_start, cell.replicas = not stock, 2 if stock else 3
    cell.graph_cache.store = f"{app.graph_cache.store}/{label}"
    cell.cluster.namespace = f"{app.cluster.namespace}-{label}"  # a registry of its own
    fleet = session.fleet(cell, label)
    names = [replica.name for replica in fleet.plan.replicas]
    found = []
    for name, way in zip(names, [w for w in WAYS if w.startswith("stock") == stock], strict=True):
        idle = fleet.stand_by(name) / 2**20 if way == "ours_pool" else 0.0
        found.append((way, fleet.start_one(name), idle))
        fleet.stop_one(name)
    fleet.stop()
    return found


def _row(way: str, turn: int, report: StartReport, idle_mib: float) -> dict[str, Any]:
    wanted = {"stock_cold": "stock", "stock_warm": "stock", "ours_cold": "compiled"}.get(way, "hit")
    return {
        "way": way,
        "round": turn,
        "first_token_s": round(report.first_token_s, 2),
        "receipt": report.receipt.outcome.value,
        "idle_mib": round(idle_mib),
        "ok": report.receipt.outcome.value == wanted,
        "phases": [asdict(phase) for phase in report.phases],
    }
