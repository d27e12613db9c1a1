"""A service under steady load loses a replica; then one under a square wave of load: nothing hangs, nothing flaps."""

from __future__ import annotations

import os
import signal
import statistics
import time
from copy import deepcopy
from typing import Any

import httpx

from orchestrator.bench.load_client import Clients
from orchestrator.bench.resources import make_room
from orchestrator.bench.result import BenchResult
from orchestrator.cluster import provenance
from orchestrator.config import AppConfig
from orchestrator.progress import Say
from orchestrator.serve.controller import model_states
from orchestrator.serve.launch import Service, serving

_WINDOW_S = 10.0
_WAVE_S = 20.0
_POLL_S = 0.25


def measure(app: AppConfig, say: Say) -> BenchResult:
    """`bench.batch` streams for `bench.seconds` seconds with a replica killed half way, then `bench.rounds` waves."""
    killed, waves = _killed(app, say), _waves(app, say)
    summary = {**killed, **waves}
    ok = not killed["ends"].get("hung") and not killed["ends"].get("cut") and killed["recovered"] >= 0.9
    ok = ok and killed["replacement"] == "hit" and waves["changes"] <= 2 * app.bench.rounds
    return BenchResult("soak", summary, [summary], provenance.machine(), ok)


def _killed(app: AppConfig, say: Say) -> dict[str, Any]:
    cell = _cell(app, 2, 2)
    with serving(cell, say) as service:
        _until(lambda: len(_replicas(service)) == 2, 120.0)
        with Clients(service, app.bench.batch, app.bench.tokens) as clients:
            began = time.monotonic()
            time.sleep(app.bench.seconds / 2)
            before = _replicas(service)
            os.kill(next(iter(before.values()))["pid"], signal.SIGKILL)
            killed_at = time.monotonic()
            say("bench", "a replica was killed")
            new = _until(lambda: {n: r for n, r in _replicas(service).items() if n not in before}, 180.0)
            replaced_s = time.monotonic() - killed_at
            say("bench", f"it was replaced after {replaced_s:.1f} s")
            time.sleep(max(0.0, app.bench.seconds / 2 - replaced_s))
            ended = time.monotonic()
    steady = _windows(clients, began + _WINDOW_S, killed_at)
    late = _windows(clients, max(ended - app.bench.seconds / 4, killed_at + replaced_s), ended)
    return {
        "ends": dict(clients.ends),
        "tokens_per_s": round(statistics.median(steady), 1),
        "least_after": round(min(_windows(clients, killed_at, ended)), 1),
        "recovered": round(statistics.median(late) / statistics.median(steady), 3),
        "replaced_s": round(replaced_s, 1),
        "replacement": next(iter(new.values()))["receipt"]["outcome"],
    }


def _waves(app: AppConfig, say: Say) -> dict[str, Any]:
    """Changes of the number of replicas that were wanted, under load that comes and goes."""
    cell = _cell(app, 1, 2)
    cell.serve.target_ongoing_requests, cell.serve.upscale_delay_s, cell.serve.downscale_delay_s = 8.0, 2.0, 10.0
    wanted = [1]
    with serving(cell, say) as service:
        for wave in range(app.bench.rounds):
            say("bench", f"wave {wave}")
            with Clients(service, 24, app.bench.tokens):
                _watch(cell, wanted)
            _watch(cell, wanted)
    return {"waves": app.bench.rounds, "changes": len(wanted) - 1, "wanted": wanted}


def _watch(app: AppConfig, wanted: list[int]) -> None:
    end = time.monotonic() + _WAVE_S
    while time.monotonic() < end:
        now = sum(n for state, n in model_states(app.serve.name).items() if state != "STOPPING")
        if now != wanted[-1]:
            wanted.append(now)
        time.sleep(_POLL_S)


def _cell(app: AppConfig, least: int, most: int) -> AppConfig:
    cell = deepcopy(app)
    cell.serve.min_replicas, cell.serve.max_replicas, cell.serve.models = least, most, {}
    make_room(cell, most)
    return cell


def _replicas(service: Service) -> dict[str, dict[str, Any]]:
    found = httpx.get(f"{service.address}/status.json", timeout=60.0)
    return {r["replica"]: r for r in found.json()["replicas"]} if found.is_success else {}


def _until(condition: Any, seconds: float) -> Any:
    end = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > end:
            raise TimeoutError(f"not within {seconds:g} s")
        time.sleep(_POLL_S)
    return found


def _windows(clients: Clients, start: float, end: float) -> list[float]:
    count = max(1, int((end - start) / _WINDOW_S))
    return [clients.rate(start + i * _WINDOW_S, start + (i + 1) * _WINDOW_S) for i in range(count)]
