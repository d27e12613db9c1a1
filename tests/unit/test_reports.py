"""Pages and comparisons, from results as jobs write them."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from orchestrator.cli import upload
from orchestrator.errors import ConfigError
from orchestrator.report import compare, page, plots, tables

MACHINE = {"cpu": "x", "cores": 2, "memory_gib": 1.0, "python": "3", "versions": {"ray": "1"}}


def bench(seconds: float) -> dict:
    machine = {**MACHINE, "cores": int(seconds)}
    rows = [{"mode": "<b>", "layers": n, "compile_s": seconds * n} for n in (4, 16)]
    plot = {"title": "Compile time", "value": "compile_s", "by": ["mode"], "over": "layers"}
    return {
        "schema": "orchestrator.bench/1", "command": "python bench.py", "kind": "depth", "rows": rows, "ok": True,
        "summary": {"compile_s": {"<b>": {"4": seconds}}}, "machine": machine, "plots": [plot],
    }  # fmt: skip


def test_a_benchmarks_page_has_its_plot_and_escapes_names() -> None:
    text = page.html("bench=depth", [], benches=[bench(1.0)])
    assert "<svg" in text
    assert "&lt;b&gt;" in text
    assert "<b>, " not in text
    assert "python bench.py" in text


MEASURED = "vLLM measures free memory at each start; engine.kv_cache_gib sets the size"


@pytest.mark.parametrize(
    ("here", "there", "why", "lines"),
    [
        (900, 1000, "", [f"room for 900 KV-cache tokens, -100 to the replica that compiled ({MEASURED})"]),
        (
            1100,
            1000,
            "less is free",
            ["room for 1100 KV-cache tokens, +100 to the replica that compiled (less is free)"],
        ),
        (1000, 1000, "", []),
        (1000, 0, "", []),
    ],
)
def test_a_replica_says_how_much_less_room_it_has(here: int, there: int, why: str, lines: list[str]) -> None:
    replica = {"receipt": {"kv_tokens": there}, "engine": {"kv_tokens": here, "no_plan": why}}
    assert tables.came_lines(replica) == lines


def test_bars_are_in_proportion() -> None:
    text = plots.bars([("a", 1.0), ("b", 4.0)])
    assert "width:25.00%" in text
    assert "width:100.00%" in text


def test_lines_go_through_their_points() -> None:
    text = plots.lines({"a": [(0.0, 0.0), (2.0, 4.0)]}, "layers")
    assert 'points="56.0,260.0 620.0,20.0"' in text


def test_two_results_side_by_side(tmp_path: Path) -> None:
    for name, seconds in (("a", 2.0), ("b", 3.0)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "bench.json").write_text(json.dumps(bench(seconds)))
    found = compare.compare(str(tmp_path / "a"), str(tmp_path / "b" / "bench.json"))
    assert found.figures == (("compile_s.<b>.4", 2.0, 3.0),)
    assert found.settings == (("machine.cores", "2", "3"),)
    shown = io.StringIO()
    compare.show(found, Console(file=shown, width=200), str(tmp_path / "page.html"))
    assert "1.50" in shown.getvalue()
    assert "compile_s.&lt;b&gt;.4" in (tmp_path / "page.html").read_text()


def test_what_cannot_be_compared_is_told(tmp_path: Path) -> None:
    (tmp_path / "bench.json").write_text(json.dumps(bench(1.0)))
    (tmp_path / "sweep.json").write_text(json.dumps({"schema": "orchestrator.sweep/1", "cells": []}))
    with pytest.raises(ConfigError, match="a sweep"):
        compare.compare(str(tmp_path / "bench.json"), str(tmp_path / "sweep.json"))
    with pytest.raises(ConfigError, match="is no result"):
        compare.load(str(tmp_path / "nothing"))


def test_outputs_are_copied_below_day_and_time(tmp_path: Path) -> None:
    folder = tmp_path / "outputs" / "day" / "time"
    (folder / "0").mkdir(parents=True)
    (folder / "0" / "result.json").write_text("{}")
    assert upload.upload(folder, f"file://{tmp_path}/far") == f"file://{tmp_path}/far/day/time"
    assert (tmp_path / "far" / "day" / "time" / "0" / "result.json").read_text() == "{}"
    with pytest.raises(ConfigError, match="upload=nonsense://x"):
        upload.check("nonsense://x")
