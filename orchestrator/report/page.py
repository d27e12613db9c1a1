"""The HTML report: one page that stands alone."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from orchestrator.report import plots
from orchestrator.report.tables import came_lines
from orchestrator.timeline.colours import COLOURS


def html(
    title: str,
    runs: Sequence[Mapping[str, Any]],
    rows: Sequence[Mapping[str, Any]] = (),
    benches: Sequence[Mapping[str, Any]] = (),
    forecast: Mapping[str, Any] | None = None,
) -> str:
    """A page of runs, of a sweep, or of benchmarks.

    Args:
        title: of the page.
        runs: results of runs, as in result.json.
        rows: a sweep's comparison.
        benches: results of benchmarks, as in bench.json.
        forecast: how well a sweep's starts would have been foreseen.
    """
    longest = max((r["first_token_s"] for run in runs for r in run.get("replicas", [])), default=1.0)
    return _render(
        title=title,
        runs=runs,
        rows=rows,
        forecast=forecast,
        benches=[
            {**bench, "drawn": [(p["title"], _drawn(p, bench["rows"])) for p in bench["plots"]]} for bench in benches
        ],
        sweep_plots=_sweep_plots(rows),
        longest=longest,
    )


def _render(**found: Any) -> str:
    page = resources.files("orchestrator.report").joinpath("page.html.j2").read_text()
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(page).render(
        **found, colours=COLOURS, came_lines=came_lines, now=time.strftime("%Y-%m-%d %H:%M:%S")
    )


def _drawn(plot: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Markup:
    shown = [row for row in rows if row.get(plot["value"]) is not None]
    named = [(" ".join(str(row[column]) for column in plot["by"]), row) for row in shown]
    if not plot["over"]:
        return plots.bars([(name, row[plot["value"]]) for name, row in named])
    series: dict[str, list[tuple[float, float]]] = {}
    for name, row in named:
        series.setdefault(name, []).append((row[plot["over"]], row[plot["value"]]))
    return plots.lines(series, plot["over"]) if series else Markup("")


def _sweep_plots(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, Markup]]:
    well = [row for row in rows if "compile_s" in row and not row.get("error")]
    if not well:
        return []
    return [
        ("Second replica's first token, seconds", plots.bars([(r["name"], _last(r["first_token_s"])) for r in well])),
        ("First replica's compile, seconds", plots.bars([(r["name"], r["compile_s"][0]) for r in well])),
        ("Throughput, tokens per second", plots.bars([(r["name"], r["tokens_per_s"]) for r in well])),
        ("Time to first token of an answer, seconds (median)", plots.bars([(r["name"], r["ttft_s"]) for r in well])),
    ]


def _last(found: Mapping[str, float]) -> float:
    return list(found.values())[-1]


def comparison(
    kind: str,
    names: tuple[str, str],
    figures: Sequence[tuple[str, float | None, float | None]],
    settings: Sequence[tuple[str, str, str]],
) -> str:
    """A page of two results side by side; the arguments are `compare.Comparison`'s."""
    shown = [(f"{side} {name}", value) for name, *pair in figures for side, value in zip("ab", pair, strict=True)]
    drawn = plots.bars([(label, value) for label, value in shown if value is not None and "_s" in label])
    return _render(title=f"Two results: {kind}", names=names, figures=figures, settings=settings, drawn=drawn)
