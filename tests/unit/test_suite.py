"""Several benchmarks in one run: what is run, for how long, and what is left of it."""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hydra.core.hydra_config import HydraConfig

from orchestrator.cli import suite
from orchestrator.cli.cell import Cell, Processes
from orchestrator.config import SuiteEntry, SweepConfig
from orchestrator.config.sources import composed
from tests.unit.commands import ROOT


def entries(*lines: tuple[int, str]) -> list[SuiteEntry]:
    return [SuiteEntry(text.split(), gpus) for gpus, text in lines]


@pytest.mark.parametrize(("gpus", "most"), [(0, "1"), (1, "1"), (2, "2"), (3, "2"), (7, "4"), (8, "8")])
def test_a_suite_takes_as_many_gpus_as_tensor_parallelism_can(gpus: int, most: str) -> None:
    (entry,) = suite.planned(entries((1, "bench=depth engine.tensor_parallel_size={gpus}")), {}, gpus, True)
    assert entry.run == ["bench=depth", f"engine.tensor_parallel_size={most}"]


def test_a_suite_without_the_hub_takes_shapes_and_runs_nothing_twice() -> None:
    wanted = entries((1, "bench=startup model=a"), (1, "bench=startup model=b"), (2, "bench=startup model=shape_a"))
    assert len(suite.planned(wanted, {"a": "shape_a"}, 1, True)) == 3
    found = suite.planned(wanted, {"a": "shape_a"}, 1, False)
    assert [entry.run[1] for entry in found] == ["model=shape_a", "model=b"]


def test_every_entry_of_the_suites_is_a_configuration(make_app) -> None:
    for name in ("all", "gpu"):
        found = make_app(f"bench={name}").bench
        for entry in suite.planned(found.suite, found.offline, 8, online=False):
            words = [f"graph_cache.store={name}" if word == "graph_cache=per_run" else word for word in entry.run]
            assert make_app(*words).bench.kind.value != "all"


def ran(folder: Path, monkeypatch: pytest.MonkeyPatch, *changes: str, fails: str = "") -> tuple[dict, list[str], list]:
    """A suite whose benchmarks only write what they were asked; its RESULT line, what it said, and their deadlines."""
    said: list[str] = []
    deadlines: list[float | None] = []

    def run(self: Any, cell: Cell, settings: SweepConfig) -> dict[str, Any]:
        deadlines.append(settings.deadline_s)
        if "bench=" + fails in cell.overrides:
            return {"code": 1, "result": {"ok": False, "error": "it broke"}}
        cell.folder.mkdir()
        (cell.folder / "orchestrator.log").write_text("x" * 10 + "\n" + "line\n" * 100_000)
        result = json.loads((ROOT / "docs" / "results" / "cache.json").read_text())
        (cell.folder / "bench.json").write_text(json.dumps(result))
        return {"code": 0, "result": {"ok": True}}

    monkeypatch.setattr(Processes, "run", run)
    monkeypatch.setattr(suite, "visible_gpus", lambda: 0)
    monkeypatch.setattr(HydraConfig, "get", lambda: None)
    monkeypatch.setattr(suite.sources, "flags", lambda _: [])
    app = composed(["bench=all", *changes])
    app.bench.suite = [
        SuiteEntry(["bench=cache"], minutes=3), SuiteEntry(["bench=depth"], minutes=90),
        SuiteEntry(["bench=startup"], gpus=1), SuiteEntry(["bench=soak"]),
    ]  # fmt: skip
    return suite.execute(app, folder, lambda who, what: said.append(what)), said, deadlines


def test_a_suite_says_what_it_will_run_and_leaves_out_what_does_not_fit(tmp_path: Path, monkeypatch) -> None:
    result, said, deadlines = ran(tmp_path, monkeypatch, "bench.minutes=30")
    assert said[:5] == [
        "1. bench=cache, about 3 minutes", "2. bench=depth, about 90 minutes", "3. bench=startup", "4. bench=soak",
        "4 benchmarks: about 93 minutes and 2 of unknown length; no longer than bench.minutes=30",
    ]  # fmt: skip
    assert result["ok"]
    skipped = {end["name"]: end.get("skipped", "") for end in result["benches"]}
    assert skipped["bench=depth"] == "30 minutes of bench.minutes are left, it takes about 90"
    assert skipped["bench=startup"] == "it needs 1 GPUs, there are 0"
    assert not skipped["bench=cache"]
    assert [0 < (seconds or 0) <= 1800 for seconds in deadlines] == [True, True]  # what runs then is ended


def test_a_benchmark_that_fails_leaves_the_others_and_all_is_in_one_archive(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "out").mkdir()
    result, _, deadlines = ran(tmp_path / "out", monkeypatch, fails="depth")
    assert deadlines == [None, None, None]
    assert not result["ok"]
    assert [end["error"] for end in result["benches"] if "error" in end] == ["", "it broke", ""]
    with tarfile.open(result["archive"]) as archive:
        sizes = {member.name: member.size for member in archive}
    assert set(sizes) == {
        "out/suite.json", "out/RESULTS.md", "out/report.html",
        "out/0/bench.json", "out/3/bench.json", "out/0/orchestrator.log", "out/3/orchestrator.log",
    }  # fmt: skip
    assert sizes["out/0/orchestrator.log"] == suite._LOG_BYTES  # its end


def test_an_archive_stays_small_enough_to_be_sent(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / str(i)).mkdir()
        (tmp_path / str(i) / "bench.json").write_bytes(os.urandom(7 << 20))
    (tmp_path / "suite.json").write_text("{}")
    assert suite.pack(tmp_path).stat().st_size < 16 << 20
    with tarfile.open(tmp_path / suite.ARCHIVE) as archive:
        names = [Path(name).relative_to(tmp_path.name).as_posix() for name in archive.getnames()]
    assert names == ["suite.json", "0/bench.json", "1/bench.json"]
