"""Benchmarks that anyone can rerun; every figure is a ratio's worth of one run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from orchestrator import run
from orchestrator.config import AppConfig, BenchKind, KvUpdate, ModelSource
from orchestrator.engine import Sampling
from orchestrator.errors import ConfigError, OrchestratorError
from orchestrator.fleet import Fleet
from orchestrator.replica import StartReport
from orchestrator.timeline import COMPILE_PHASES

_FIGURES = ("artifacts", "artifact_kib", "dynamo_s", "inductor_s", "compile_s", "warm_load_s")
Say = Callable[[str, str], None]


@dataclass(frozen=True)
class BenchResult:
    """A benchmark's outcome: `summary` for scripts, `rows` for the table."""

    kind: str
    summary: dict[str, Any]
    rows: list[dict[str, Any]]
    machine: dict[str, Any]
    ok: bool = True


def execute(app: AppConfig, say: Say) -> BenchResult:
    """Run the benchmark that `app.bench` names.

    Raises:
        ConfigError: the model has no depth to vary.
        OrchestratorError: a replica did not come up.
    """
    if app.bench.kind is BenchKind.throughput:
        return _throughput(app, say)
    return _depth(app, say)


def _depth(app: AppConfig, say: Say) -> BenchResult:
    """Each mode at each depth: a replica that compiles, and one that loads."""
    if app.model.source is not ModelSource.tiny:
        raise ConfigError("bench=depth varies model.tiny.num_hidden_layers.", where="model", hint="model=tiny_llama")
    rows = []
    for layers in app.bench.layers:
        for mode in app.bench.modes:
            say("bench", f"{mode.value}, {layers} layers")
            cell = _cell(app, mode, layers)
            row: dict[str, Any] = {"mode": mode.value, "layers": layers}
            try:
                result = run.execute(cell, say)
                row |= {**_compile_figures(result.reports), "ok": result.ok}
            except OrchestratorError as error:  # the other cells are still worth having
                say("bench", f"failed: {error}")
                row |= {**dict.fromkeys(_FIGURES), "second": str(error), "ok": False}
            rows.append(row)
    summary: dict[str, Any] = {"unique_artifacts": {}, "compile_s": {}}
    for row in rows:
        summary["unique_artifacts"].setdefault(row["mode"], {})[str(row["layers"])] = row["artifacts"]
        summary["compile_s"].setdefault(row["mode"], {})[str(row["layers"])] = row["compile_s"]
    return BenchResult("depth", summary, rows, run.machine(), all(row["ok"] for row in rows))


def _cell(app: AppConfig, mode: KvUpdate, layers: int | None = None) -> AppConfig:
    cell = deepcopy(app)
    cell.cold_start.kv_update = mode
    cell.fast_cold_start, cell.replicas = True, 2
    if layers is not None:
        cell.model.tiny["num_hidden_layers"] = layers
        cell.model.name = f"{app.model.name}-{layers}"
    cell.graph_cache.store = f"{app.graph_cache.store}/{mode.value}-{layers}-{time.time_ns()}"  # always cold
    return cell


def _compile_figures(reports: list[StartReport]) -> dict[str, Any]:
    cold, warm = reports[0], reports[1]
    phases = {name: sum(p.seconds for p in cold.phases if p.name == name) for name in COMPILE_PHASES}
    load = sum(p.seconds for p in warm.phases if p.name == "artifact load")
    return {
        "artifacts": cold.facts.artifacts,
        "artifact_kib": round(cold.facts.artifact_bytes / 1024),
        "dynamo_s": round(phases["dynamo"], 2),
        "inductor_s": round(phases["inductor"], 2),
        "compile_s": round(cold.facts.compile_s, 2),
        "warm_load_s": round(load, 2),
        "second": warm.receipt.outcome.value,
    }


def _throughput(app: AppConfig, say: Say) -> BenchResult:
    """Modes in turn, round by round, on engines that are all up: what disturbs one round disturbs all."""
    prompts = [f"{i}: {app.workload.prompts[i % len(app.workload.prompts)]}" for i in range(app.bench.batch)]
    seconds: dict[str, dict[str, list[float]]] = {}
    with run.session(app, say) as session:
        fleets: dict[str, Fleet] = {}
        for mode in app.bench.modes:
            cell = _cell(app, mode)
            cell.replicas = 1
            fleets[mode.value] = session.fleet(cell, mode.value)
            fleets[mode.value].start()
        for turn in range(app.bench.rounds + 1):
            for name, fleet in fleets.items():
                say("bench", f"round {turn}, {name}")
                found = _measure(fleet, [f"{turn} {p}" for p in prompts], app.bench.tokens)
                if turn:  # the first round warms up
                    for what, value in found.items():
                        seconds.setdefault(name, {}).setdefault(what, []).append(value)
    return _throughput_result(app, seconds)


def _measure(fleet: Fleet, prompts: list[str], tokens: int) -> dict[str, float]:
    """Seconds for a batch of long prompts (prefill), and for a batch of long answers (decode)."""
    name = fleet.plan.replicas[0].name
    began = time.perf_counter()
    fleet.ask_one(name, [p * 12 for p in prompts], Sampling(max_tokens=1))
    prefilled = time.perf_counter()
    fleet.ask_one(name, prompts, Sampling(max_tokens=tokens, ignore_eos=True))
    return {"prefill": prefilled - began, "decode": time.perf_counter() - prefilled}


def _throughput_result(app: AppConfig, seconds: dict[str, dict[str, list[float]]]) -> BenchResult:
    base = app.bench.modes[0].value
    rows = []
    for mode, found in seconds.items():
        for what, values in found.items():
            paired = [b / v for b, v in zip(seconds[base][what], values, strict=True)]
            rows.append(
                {
                    "mode": mode,
                    "what": what,
                    "median_s": round(statistics.median(values), 3),
                    "ratio": round(statistics.median(paired), 4),
                    "spread": f"{min(paired):.3f}..{max(paired):.3f}",
                }
            )
    ratios: dict[str, dict[str, Any]] = {}
    for row in rows:
        ratios.setdefault(str(row["mode"]), {})[str(row["what"])] = row["ratio"]
    return BenchResult("throughput", {f"ratio_to_{base}": ratios}, rows, run.machine())
