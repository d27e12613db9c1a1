"""Results -> a table in the terminal, JSON, and an HTML page that stands alone."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from jinja2 import Environment
from rich.console import Console
from rich.table import Table

from orchestrator.colours import COLOURS
from orchestrator.timeline import COMPILE_PHASES

if TYPE_CHECKING:
    from orchestrator.bench.result import BenchResult
    from orchestrator.run import RunResult
    from orchestrator.warm import WarmResult


class Progress:
    """A live line that says what happens, and a line for each thing that is done."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._status = console.status("starting")
        self._began = time.monotonic()
        self._last: dict[str, str] = {}

    def __enter__(self) -> Progress:
        self._status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._status.stop()

    def say(self, who: str, what: str) -> None:
        """Show what `who` does; only changes are printed where the terminal is not live."""
        if self._last.get(who) == what:
            return
        self._last[who] = what
        elapsed = time.monotonic() - self._began
        self._status.update(f"{who}: {what}")
        self._console.log(f"[dim]{elapsed:6.1f} s[/] [bold]{who}[/] {what}", highlight=False)


def write_run(folder: Path, result: RunResult, console: Console) -> dict[str, Any]:
    """Print the table, write result.json and report.html; returns the RESULT line's object."""
    data = result.as_dict()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text(json.dumps(data, indent=2))
    (folder / "report.html").write_text(_html(f"{data['config']['model']['name']}: start-up", [data]))
    console.print(answers_table(data))
    console.print(timeline_table(data))
    console.print(f"Report: {folder / 'report.html'}")
    return {**result.summary(), "report": str(folder / "report.html")}


def write_bench(folder: Path, result: BenchResult, console: Console) -> dict[str, Any]:
    """Print a benchmark's table, write bench.json and report.html; returns the RESULT line's object."""
    data = {"schema": "orchestrator.bench/1", **asdict(result)}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bench.json").write_text(json.dumps(data, indent=2))
    (folder / "report.html").write_text(_html(f"bench={result.kind}", [], bench=result.rows))
    table = Table(title=f"bench={result.kind}", title_justify="left")
    columns = [column for column in result.rows[0] if column != "phases"]
    for column in columns:
        table.add_column(column, justify="left" if isinstance(result.rows[0][column], str) else "right")
    for row in result.rows:
        table.add_row(*(str(row[column]) for column in columns))
    console.print(table)
    console.print(f"Report: {folder / 'report.html'}")
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


def write_sweep(folder: Path, cells: Sequence[dict[str, Any]], console: Console) -> str:
    """Print the comparison of a sweep's cells, write sweep.json and report.html; returns the RESULT line."""
    rows = [comparison_row(cell) for cell in cells]
    data = {"schema": "orchestrator.sweep/1", "ok": all(cell["result"]["ok"] for cell in cells), "cells": rows}
    compare_tokens(rows)
    (folder / "sweep.json").write_text(json.dumps(data, indent=2))
    whole = [json.loads((Path(c["folder"]) / "result.json").read_text()) for c in cells]
    (folder / "report.html").write_text(_html("Sweep", whole, rows))
    console.print(sweep_table(rows))
    console.print(f"Report: {folder / 'report.html'}")
    keep = ("name", "ok", "first_token_s", "second_replica", "same_tokens", "tokens_as_stock", "speedup", "error")
    line = {**data, "cells": [{k: row[k] for k in keep if k in row} for row in rows], "report": str(folder)}
    return "RESULT " + json.dumps(line)


def comparison_row(cell: dict[str, Any]) -> dict[str, Any]:
    """What the comparison says of one cell."""
    data = json.loads((Path(cell["folder"]) / "result.json").read_text())
    config = data.get("config", {})
    name = " ".join(o for o in cell["overrides"]) or config.get("model", {}).get("name", "")
    row = {"name": name, "folder": cell["folder"], **{k: v for k, v in cell["result"].items() if k != "report"}}
    if "replicas" in data:
        row["model"] = config["model"]
        row["stock"] = not config["fast_cold_start"]
        row["tokens"] = [a["token_ids"] for a in next(iter(data["answers"].values()))]
        row["compile_s"] = [
            round(sum(_lengths(r).get(name, 0.0) for name in COMPILE_PHASES), 1) for r in data["replicas"]
        ]
        row["outcomes"] = [r["receipt"]["outcome"] for r in data["replicas"]]
    return row


def compare_tokens(rows: list[dict[str, Any]]) -> None:
    """Set each cell against stock vLLM's cell of the same model: the same tokens, and how much sooner."""
    for row in rows:
        stock = next((r for r in rows if r.get("stock") and r.get("model") == row.get("model")), None)
        if stock is None or "tokens" not in row:
            continue
        row["tokens_as_stock"] = row["tokens"] == stock["tokens"]
        cold = stock["first_token_s"]["first"]
        row["speedup"] = {name: round(cold / seconds, 2) for name, seconds in row["first_token_s"].items()}
    for row in rows:
        row.pop("tokens", None)
        row.pop("model", None)


def timeline_table(data: dict[str, Any]) -> Table:
    """Phases side by side, one column a replica."""
    replicas = data["replicas"]
    table = Table(title="Start-up, seconds", title_justify="left", show_footer=True)
    table.add_column("phase", footer="first token after")
    for r in replicas:
        table.add_column(f"{r['replica']} ({r['receipt']['outcome']})", f"{r['first_token_s']:.1f}", justify="right")
    table.add_column("", "", no_wrap=True)
    lengths = [_lengths(r) for r in replicas]
    names = [name for name in COLOURS if any(name in found for found in lengths)]
    names += [name for found in lengths for name in found if name not in names]
    longest = max((s for found in lengths for s in found.values()), default=1.0)
    for name in dict.fromkeys(names):
        cells = [f"{found[name]:.2f}" if name in found else "-" for found in lengths]
        bars = "\n".join("█" * max(1, round(24 * found[name] / longest)) for found in lengths if name in found)
        table.add_row(name, *cells, f"[dim]{bars.splitlines()[0] if bars else ''}[/]")
    if len(replicas) > 1:
        ratio = replicas[0]["first_token_s"] / replicas[1]["first_token_s"]
        table.caption = f"{replicas[1]['replica']} answered {ratio:.1f} times sooner than {replicas[0]['replica']}."
    return table


def answers_table(data: dict[str, Any]) -> Table:
    """Prompts and answers, and whether all replicas agree."""
    agree = "the same tokens from every replica" if data["same_tokens"] else "REPLICAS DISAGREE"
    table = Table(title=f"Answers ({agree})", title_justify="left")
    table.add_column("prompt")
    table.add_column("answer")
    for answer in next(iter(data["answers"].values()), []):
        table.add_row(answer["prompt"], " ".join(answer["text"].split()))
    return table


def sweep_table(rows: Sequence[dict[str, Any]]) -> Table:
    """One line a cell."""
    table = Table(title="Sweep", title_justify="left")
    for column in (
        "cell",
        "first token s",
        "receipts",
        "compile or load s",
        "tokens as stock",
        "sooner than stock cold",
    ):
        table.add_column(column)
    for row in rows:
        if row.get("error"):
            table.add_row(row["name"], f"[red]{row['error']}[/]")
            continue
        sooner = " / ".join(f"{x:.1f}x" for x in row.get("speedup", {}).values())
        same = {True: "yes", False: "[red]NO[/]", None: "-"}[row.get("tokens_as_stock")]
        first = " / ".join(f"{x:.1f}" for x in row["first_token_s"].values())
        compiled = " / ".join(f"{x:.1f}" for x in row["compile_s"])
        table.add_row(row["name"], first, " / ".join(row["outcomes"]), compiled, same, sooner or "-")
    return table


def _lengths(replica: dict[str, Any]) -> dict[str, float]:
    found: dict[str, float] = {}
    for phase in replica["phases"]:
        found[phase["name"]] = found.get(phase["name"], 0.0) + phase["seconds"]
    return found


def _html(
    title: str,
    runs: list[dict[str, Any]],
    rows: Sequence[dict[str, Any]] = (),
    bench: Sequence[dict[str, Any]] = (),
) -> str:
    page = resources.files("orchestrator").joinpath("report.html.j2").read_text()
    longest = max((r["first_token_s"] for run in runs for r in run.get("replicas", [])), default=1.0)
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(page).render(
        title=title,
        runs=runs,
        rows=rows,
        bench=bench,
        colours=COLOURS,
        longest=longest,
        now=time.strftime("%Y-%m-%d %H:%M:%S"),
    )
