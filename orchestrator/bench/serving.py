"""Steady throughput of a service with one replica: stock Ray Serve LLM and ours in turn, round by round."""

from __future__ import annotations

import statistics
import time
from copy import deepcopy
from typing import Any

from orchestrator.bench.load_client import Clients, empty_vllm_cache
from orchestrator.bench.resources import make_room
from orchestrator.bench.result import BenchResult, Plot
from orchestrator.cluster import provenance
from orchestrator.config import AppConfig
from orchestrator.progress import Say
from orchestrator.serve.launch import serving

_WARM_UP_S = 5.0


def measure(app: AppConfig, say: Say) -> BenchResult:
    """Tokens per second for `bench.batch` clients over `bench.seconds` seconds; the order turns each round."""
    rows: list[dict[str, Any]] = []
    for turn in range(app.bench.rounds):
        for stock in (True, False) if turn % 2 else (False, True):
            row = {"way": "stock" if stock else "ours", "round": turn, **_steady(app, stock, turn, say)}
            say("bench", f"round {turn}, {row['way']}: {row['tokens_per_s']:.1f} tokens/s")
            rows.append(row)
    found = {
        way: [r["tokens_per_s"] for r in sorted(rows, key=lambda r: r["round"]) if r["way"] == way]
        for way in ("stock", "ours")
    }
    paired = [o / s for s, o in zip(found["stock"], found["ours"], strict=True)]
    summary = {
        "tokens_per_s": {way: round(statistics.median(s), 1) for way, s in found.items()},
        "ratio_to_stock": round(statistics.median(paired), 3),
        "spread": [round(min(paired), 3), round(max(paired), 3)],
    }
    plots = (Plot("Tokens per second", "tokens_per_s", ("way", "round")),)
    well = all(set(r["ends"]) == {"answered"} for r in rows)
    return BenchResult("serving", summary, rows, provenance.machine(), well, plots)


def _steady(app: AppConfig, stock: bool, turn: int, say: Say) -> dict[str, Any]:
    cell = deepcopy(app)
    cell.fast_cold_start = not stock
    cell.serve.min_replicas = cell.serve.max_replicas = 1
    make_room(cell, 1)
    with empty_vllm_cache(), serving(cell, say) as service:
        with Clients(service, app.bench.batch, app.bench.tokens) as clients:
            time.sleep(_WARM_UP_S)
            began = time.monotonic()
            time.sleep(app.bench.seconds)
            ended = time.monotonic()
        return {"tokens_per_s": round(clients.rate(began, ended), 2), "ends": dict(clients.ends)}
