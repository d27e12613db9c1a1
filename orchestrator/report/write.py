"""Results -> a table in the terminal, JSON, and an HTML page that stands alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from orchestrator.cluster import provenance
from orchestrator.report.forecasts import foresee
from orchestrator.report.page import html
from orchestrator.report.tables import answers_table, compare_tokens, comparison_row, sweep_table, timeline_table

if TYPE_CHECKING:
    from orchestrator.bench.result import BenchResult
    from orchestrator.runs.batch.job import BatchResult
    from orchestrator.runs.run import RunResult
    from orchestrator.runs.warm import WarmResult


def write_run(folder: Path, result: RunResult, console: Console) -> dict[str, Any]:
    """Print the table, write result.json and report.html; returns the RESULT line's object."""
    data = result.as_dict()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text(json.dumps(data, indent=2))
    (folder / "report.html").write_text(html(f"{data['config']['model']['name']}: start-up", [data]))
    console.print(answers_table(data))
    console.print(timeline_table(data))
    console.print(f"Report: {folder / 'report.html'}", soft_wrap=True)
    return {**result.summary(), "report": str(folder / "report.html")}


def write_bench(folder: Path, result: BenchResult, console: Console) -> dict[str, Any]:
    """Print a benchmark's table, write bench.json and report.html; returns the RESULT line's object."""
    data = {"schema": "orchestrator.bench/1", "command": provenance.command(), **asdict(result)}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bench.json").write_text(json.dumps(data, indent=2))
    (folder / "report.html").write_text(html(f"bench={result.kind}", [], benches=[data]))
    table = Table(title=f"bench={result.kind}", title_justify="left")
    columns = [column for column in result.rows[0] if column != "phases"]
    for column in columns:
        table.add_column(column, justify="left" if isinstance(result.rows[0][column], str) else "right")
    for row in result.rows:
        table.add_row(*(str(row[column]) for column in columns))
    console.print(table)
    console.print(f"Report: {folder / 'report.html'}", soft_wrap=True)
    return {"ok": result.ok, **result.summary, "report": str(folder / "report.html")}


def write_warm(folder: Path, result: WarmResult, console: Console) -> dict[str, Any]:
    """Print what was compiled and loaded, write warm.json; returns the RESULT line's object."""
    data = {"schema": "orchestrator.warm/1", **result.summary()}
    data["replicas"] = [r.as_dict() for r in (result.first, result.second) if r is not None]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "warm.json").write_text(json.dumps(data, indent=2))
    table = Table(title=f"{result.model}: {result.summary()['key'][:12]}", title_justify="left")
    for column in ("replica", "outcome", "MiB", "first token s", "KV tokens"):
        table.add_column(column, justify="left" if column in ("replica", "outcome") else "right")
    for name, r in (("first", result.first), ("fresh", result.second)):
        if r is not None:
            size, seconds = f"{r.receipt.bytes / 2**20:.1f}", f"{r.first_token_s:.1f}"
            table.add_row(name, r.receipt.outcome.value, size, seconds, str(r.facts.kv_tokens))
    console.print(table)
    return result.summary()


def write_batch(result: BatchResult, console: Console) -> dict[str, Any]:
    """Print how a batch ended; returns the RESULT line's object."""
    found = result.summary()
    table = Table(title=f"Answers in {result.output}", title_justify="left")
    for column in ("requests", "answered", "failed", "before", "tokens_per_s", "seconds"):
        table.add_column(column.replace("_", " "), justify="right")
    table.add_row(*(str(found[c]) for c in ("requests", "answered", "failed", "before", "tokens_per_s", "seconds")))
    console.print(table)
    return found


def write_sweep(folder: Path, cells: Sequence[dict[str, Any]], console: Console) -> dict[str, Any]:
    """Print the comparison of a sweep's cells, write sweep.json and report.html; returns the RESULT line's object."""
    rows = [comparison_row(cell) for cell in cells]
    compare_tokens(rows)
    ok, forecast = all(cell["result"]["ok"] for cell in cells), foresee(rows, cells)
    data = {"schema": "orchestrator.sweep/1", "ok": ok, "cells": rows, "forecast": forecast}
    (folder / "sweep.json").write_text(json.dumps(data, indent=2))
    (folder / "report.html").write_text(html("Sweep", [cell["data"] for cell in cells], rows, forecast=forecast))
    console.print(sweep_table(rows, forecast))
    console.print(f"Report: {folder / 'report.html'}", soft_wrap=True)
    keep = ("name", "ok", "first_token_s", "second_replica", "same_tokens", "tokens_as_stock", "speedup", "error")
    told = [{k: row[k] for k in keep if k in row} for row in rows]
    return {**data, "cells": told, "report": str(folder)}
