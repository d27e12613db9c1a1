"""How long vLLM's loaders take for a model's weights: its files in the page cache, or on the disk alone."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterable
from copy import deepcopy
from pathlib import Path
from typing import Any

from orchestrator.bench.result import BenchResult, Plot
from orchestrator.cluster import provenance
from orchestrator.config import AppConfig, load_formats
from orchestrator.engine.contract import Sampling
from orchestrator.engine.start_report import StartReport
from orchestrator.errors import ConfigError
from orchestrator.graph_cache.restore_result import Outcome
from orchestrator.progress import Say
from orchestrator.runs import run

_SAMPLING = Sampling(max_tokens=8)


def measure(app: AppConfig, say: Say) -> BenchResult:
    """Every format of `bench.formats` in each round, after one start that compiles and is not counted.

    Raises:
        ConfigError: a format cannot be had here, or the model is no folder with weights as safetensors.
    """
    app = deepcopy(app)
    app.replicas = 1
    cells = {name: _cell(app, name) for name in app.bench.formats}
    rows: list[dict[str, Any]] = []
    with run.session(app, say) as session:
        files = sorted(Path(session.model).glob("*.safetensors"))
        if not files:
            raise ConfigError(f"{session.model} is no folder with weights as safetensors.", where="model")
        size = sum(file.stat().st_size for file in files)
        _, known = _start(session, app, "auto")
        for turn in range(app.bench.rounds):
            for place in ("disk", "page cache"):
                for name, cell in cells.items():
                    if place == "disk":
                        _out_of_the_page_cache(files)
                    report, tokens = _start(session, cell, name)
                    rows.append(_row(name, place, turn, size, report, tokens == known))
                    say("bench", f"round {turn}, {name}, from the {place}: {rows[-1]['weights_s']:.2f} s")
    summary: dict[str, Any] = {"weights_s": {}, "first_token_s": {}}
    for figure in summary:
        for name in cells:
            found = {
                p: [r[figure] for r in rows if (r["format"], r["from"]) == (name, p)] for p in ("disk", "page cache")
            }
            summary[figure][name] = {place: round(statistics.median(s), 2) for place, s in found.items()}
    summary["mib"] = size >> 20
    plots = (Plot("Weights, seconds", "weights_s", ("format", "from")),)
    return BenchResult("loaders", summary, rows, provenance.machine(), all(row["ok"] for row in rows), plots)


def _cell(app: AppConfig, name: str) -> AppConfig:
    cell = deepcopy(app)
    cell.engine.load_format = name
    load_formats.check(cell)
    return cell


def _start(session: run.Session, app: AppConfig, label: str) -> tuple[StartReport, list[list[int]]]:
    fleet = session.fleet(app, label)
    report = fleet.start_one("replica-0")
    answers = fleet.ask_one("replica-0", app.workload.prompts, _SAMPLING)
    fleet.stop()
    return report, [list(answer.token_ids) for answer in answers]


def _row(name: str, place: str, turn: int, size: int, report: StartReport, same: bool) -> dict[str, Any]:
    seconds = sum(phase.seconds for phase in report.phases if phase.name == "weights")
    return {
        "format": name,
        "from": place,
        "round": turn,
        "weights_s": round(seconds, 3),
        "gib_per_s": round(size / 2**30 / seconds, 2),
        "first_token_s": round(report.first_token_s, 2),
        "receipt": report.receipt.outcome.value,
        "same_tokens": same,
        "ok": same and report.receipt.outcome is Outcome.hit,
    }


def _out_of_the_page_cache(files: Iterable[Path]) -> None:
    """Have the kernel forget what it holds of files, so that they are read from the disk."""
    for file in files:
        handle = os.open(file, os.O_RDONLY)
        try:
            os.fsync(handle)  # what is not written yet stays
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)
