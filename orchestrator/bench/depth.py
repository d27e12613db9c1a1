"""Compile time, unique artifacts and warm load against depth, mode by mode."""

from __future__ import annotations

import time
from copy import deepcopy
from typing import Any

from orchestrator.bench.result import BenchResult, Plot
from orchestrator.cluster import provenance
from orchestrator.config import AppConfig, KvUpdate, ModelSource
from orchestrator.engine.start_report import StartReport
from orchestrator.errors import ConfigError, OrchestratorError
from orchestrator.progress import Say
from orchestrator.runs import run
from orchestrator.timeline import COMPILE_PHASES

_FIGURES = ("artifacts", "artifact_kib", "dynamo_s", "inductor_s", "compile_s", "warm_load_s", "tokens_per_s")


def measure(app: AppConfig, say: Say) -> BenchResult:
    """Each mode at each depth: a replica that compiles, and one that loads.

    Raises:
        ConfigError: the model has no depth to vary.
    """
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
                row |= _compile_figures(result.reports)
                row |= {"tokens_per_s": result.tokens_per_s, "ok": result.ok}
            except OrchestratorError as error:  # the other cells are still worth having
                say("bench", f"failed: {error}")
                row |= {**dict.fromkeys(_FIGURES), "second": str(error), "ok": False}
            rows.append(row)
    summary: dict[str, Any] = {"unique_artifacts": {}, "compile_s": {}}
    for row in rows:
        summary["unique_artifacts"].setdefault(row["mode"], {})[str(row["layers"])] = row["artifacts"]
        summary["compile_s"].setdefault(row["mode"], {})[str(row["layers"])] = row["compile_s"]
    plots = (
        Plot("Compile time, seconds", "compile_s", ("mode",), over="layers"),
        Plot("Unique artifacts", "artifacts", ("mode",), over="layers"),
        Plot("Loading the artifact, seconds", "warm_load_s", ("mode",), over="layers"),
    )
    return BenchResult("depth", summary, rows, provenance.machine(), all(row["ok"] for row in rows), plots)


def _cell(app: AppConfig, mode: KvUpdate, layers: int) -> AppConfig:
    cell = deepcopy(app)
    cell.cold_start.kv_update = mode
    cell.fast_cold_start, cell.replicas = True, 2
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
