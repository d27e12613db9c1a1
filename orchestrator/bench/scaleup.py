"""A service under load goes from one replica to two: stock Ray Serve LLM against ours, round by round."""

from __future__ import annotations

import statistics
import time
from typing import Any

from orchestrator.bench import baseline
from orchestrator.bench.load_client import Clients, empty_vllm_cache
from orchestrator.bench.resources import make_room
from orchestrator.bench.result import BenchResult, Plot
from orchestrator.cluster import provenance
from orchestrator.config import AppConfig
from orchestrator.errors import OrchestratorError
from orchestrator.progress import Say
from orchestrator.serve.controller import model_states
from orchestrator.serve.launch import serving

_POLL_S = 0.05
_CLIENTS = 3


def measure(app: AppConfig, say: Say) -> BenchResult:
    """From the autoscaler's decision to the second replica's readiness, which for ours includes its first token."""
    rows, ways = [], baseline.ways(app)
    for turn in range(app.bench.rounds):
        for way in ways:
            row = {"way": way, "round": turn, **_scale_up(app, way, turn, say)}
            say("bench", f"round {turn}, {way}: second replica after {row['second_s']:.1f} s")
            rows.append(row)
    found = {way: [r["second_s"] for r in rows if r["way"] == way] for way in ways}
    summary = {
        **{f"{way}_s": round(statistics.median(s), 2) for way, s in found.items()},
        "spread_s": {way: [min(s), max(s)] for way, s in found.items()},
        "sooner": _sooner(found["stock"], found["ours"]),
        **{f"sooner_than_{way}": _sooner(found[way], found["ours"]) for way in ways if way not in ("stock", "ours")},
        "first_replica_s": {w: round(statistics.median(r["first_s"] for r in rows if r["way"] == w), 2) for w in found},
    }
    plots = (Plot("Second replica after the decision, seconds", "second_s", ("way", "round")),)
    well = all(set(r["ends"]) == {"answered"} for r in rows)
    return BenchResult("scaleup", summary, rows, provenance.machine(), well, plots)


def _sooner(theirs: list[float], ours: list[float]) -> float:
    return round(statistics.median(a / b for a, b in zip(theirs, ours, strict=True)), 2)


def _scale_up(app: AppConfig, way: str, turn: int, say: Say) -> dict[str, Any]:
    cell = baseline.cell(app, way)
    cell.graph_cache.store = f"{app.graph_cache.store}/{turn}"
    cell.graph_cache.node_folder = f"{app.graph_cache.node_folder}/{turn}"
    cell.serve.min_replicas, cell.serve.max_replicas, cell.serve.models = 1, 2, {}
    cell.serve.target_ongoing_requests, cell.serve.upscale_delay_s, cell.serve.downscale_delay_s = 1.0, 0.0, 3600.0
    make_room(cell, 2)
    with empty_vllm_cache(), serving(cell, say) as service, Clients(service, _CLIENTS, 64) as clients:
        decided, ready = _watched(cell)
    return {
        "first_s": round(service.ready_s, 2),
        "second_s": round(ready - decided, 2),
        "ends": dict(clients.ends),
    }


def _watched(app: AppConfig) -> tuple[float, float]:
    """When the autoscaler had decided, and when two replicas were running; seconds."""
    decided, began = 0.0, time.monotonic()
    while True:
        states = model_states(app.serve.name)
        now = time.monotonic()
        if not decided and sum(states.values()) > 1:
            decided = now
        if states.get("RUNNING", 0) == 2:
            return decided, now
        if now - began > 2 * app.engine.start_timeout_s:
            raise OrchestratorError(f"No second replica within {2 * app.engine.start_timeout_s:g} s: {states}.")
        time.sleep(_POLL_S)
