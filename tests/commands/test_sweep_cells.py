"""How a sweep treats its cells, with stubs for runs: failures, retries, deadlines, resuming, cores, optimising."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
import yaml

from orchestrator.config import sources
from tests.unit.commands import check_schema, finish, start
from tests.waiting import HANG_S, wait_for


def begun(folder: Path, *overrides: str) -> subprocess.Popen[str]:
    words = ["-m", "engine=fake", "model=tiny_llama", f"hydra.sweep.dir={folder}/out", *overrides]
    env = {**os.environ, "ORCHESTRATOR_HOME": str(folder), "PYTHONPATH": "."}
    return start("tests/commands/stub_sweep.py", *words, env=env)


def sweep(folder: Path, *overrides: str) -> tuple[int, dict, str]:
    return finish(begun(folder, *overrides))


def record(folder: Path, number: int | str, name: str = "cell.json") -> dict:
    return json.loads((folder / "out" / str(number) / name).read_text())


def test_a_sweep_goes_on_after_failures_and_says_so(tmp_path: Path) -> None:
    code, result, err = sweep(tmp_path, "+engine.extra.stub=well,fails,silent,wrong,well")
    assert code == 1
    assert [cell["ok"] for cell in result["cells"]] == [True, False, False, False, True], err
    errors = [cell.get("error") for cell in result["cells"]]
    assert errors == [None, "out of stub memory", "it ended with exit code 3 and said nothing", "a wrong setting", None]
    assert err.count("failed:") == 3
    assert (tmp_path / "out" / "report.html").is_file()
    check_schema("sweep", json.loads((tmp_path / "out" / "sweep.json").read_text()))
    assert record(tmp_path, 0, "stub.json")["job"] == "run"


def test_a_storages_keys_are_in_no_file_of_a_sweep(tmp_path: Path) -> None:
    """Hydra writes overrides down, and tells them; a cell needs them as they are."""
    store = r"graph_cache.store=s3\://name\:se/cret@bucket/x"
    said = "".join(begun(tmp_path, "+engine.extra.stub=well,fails", store).communicate(timeout=HANG_S))
    assert "out of stub memory" in said
    assert "se/cret" not in said
    for file in (file for file in tmp_path.rglob("*") if file.is_file()):
        text = file.read_text()
        assert ("se/cret" in text) == (file.name == "stub.json"), file


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core")
def test_cells_in_parallel_have_cores_of_their_own(tmp_path: Path) -> None:
    code, result, err = sweep(tmp_path, "+engine.extra.stub=meets", "replicas=1,2", "sweep.parallel=2")
    assert code == 0, err
    assert [cell["ok"] for cell in result["cells"]] == [True, True]
    one, other = (set(record(tmp_path, i, "stub.json")["cores"]) for i in range(2))
    assert one
    assert other
    assert not one & other


def test_an_optimising_sweeper_gets_its_figure(tmp_path: Path) -> None:
    code, result, err = sweep(tmp_path, "+experiment=optuna", "hydra.sweeper.n_trials=3")
    assert code == 0, err
    seconds = [cell["first_token_s"]["second"] for cell in result["cells"]]
    assert len(seconds) == 3
    best = yaml.safe_load((tmp_path / "out" / "optimization_results.yaml").read_text())
    assert best["best_value"] == min(seconds)
    assert best["best_params"]["engine.max_num_seqs"] == min(seconds)


def test_what_a_sweep_lost_is_run_again_and_nothing_else(tmp_path: Path) -> None:
    """Five cells: one fails, one is killed; resumed, only those two run."""
    cells = ["+engine.extra.stub=well,well,killed,well,fails", "replicas=1"]
    code, result, err = sweep(tmp_path, *cells)
    assert code == 1
    assert [cell["ok"] for cell in result["cells"]] == [True, True, False, True, False], err
    assert result["cells"][2]["error"] == "its process was killed by SIGKILL"
    assert result["cells"][4]["error"] == "out of stub memory"
    assert "failed:" in err
    before = [record(tmp_path, i) for i in range(5)]
    stamps = [(tmp_path / "out" / str(i) / "stub.json").stat().st_mtime_ns for i in range(5)]

    code, result, err = sweep(tmp_path, *cells, "++sweep.resume=true")
    assert code == 1  # the last one cannot succeed
    assert [cell["ok"] for cell in result["cells"]] == [True, True, True, True, False]
    after = [record(tmp_path, i) for i in range(5)]
    assert [a == b for a, b in zip(after, before, strict=True)][:4] == [True, True, False, True]
    again = [(tmp_path / "out" / str(i) / "stub.json").stat().st_mtime_ns for i in range(5)]
    assert [a == b for a, b in zip(again, stamps, strict=True)] == [True, True, False, True, False]


def test_a_cell_has_a_deadline_and_retries(tmp_path: Path) -> None:
    limit = "sweep.deadline_s='${if_hangs:${engine.extra.stub},1}'"
    code, result, err = sweep(tmp_path, "+engine.extra.stub=well,hangs,wrong", limit, "sweep.retries=1")
    assert code == 1
    assert [cell["ok"] for cell in result["cells"]] == [True, False, False], err
    assert result["cells"][1]["error"] == "not done within sweep.deadline_s=1"
    assert [record(tmp_path, i)["attempts"] for i in range(3)] == [1, 2, 1]  # what is wrong stays wrong


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core")
def test_an_interrupted_sweep_ends_its_cells_and_begins_no_other(tmp_path: Path) -> None:
    words = ["-m", "engine=fake", "model=tiny_llama", f"hydra.sweep.dir={tmp_path}/out", "sweep.parallel=2"]
    words += ["sweep.retries=3", "+engine.extra.stub=hangs", "replicas=1,2,3"]
    env = {**os.environ, "ORCHESTRATOR_HOME": str(tmp_path), "PYTHONPATH": "."}
    process = start("tests/commands/stub_sweep.py", *words, env=env)
    began = [tmp_path / "out" / str(i) / "began" for i in range(3)]
    wait_for(lambda: all(file.is_file() for file in began[:2]) or process.poll() is not None)
    os.kill(process.pid, signal.SIGINT)
    code, result, err = finish(process)
    assert code == 130, err
    assert result == {"ok": False, "error": "interrupted"}
    assert [file.read_text().count("began") for file in began[:2]] == [1, 1]
    assert not began[2].exists()


@pytest.mark.parametrize(
    ("subdir", "folders"),
    [
        ("${hydra.job.override_dirname}", [f"engine=fake,model=tiny_llama,replicas={n}" for n in (1, 2)]),
        ("a (b), c='d' #1/${replicas}/josé", ["a (b), c='d' #1/1/josé", "a (b), c='d' #1/2/josé"]),
        ("${hydra.job.num}\\", ["0\\", "1\\"]),
    ],
)  # fmt: skip
def test_cells_run_in_the_folders_that_hydra_names(tmp_path: Path, subdir: str, folders: list[str]) -> None:
    top = "my (copy), josé #1=[x]{y}"
    quoted = sources.quoted(f"{tmp_path}/{top}")
    words = [f"hydra.sweep.subdir={sources.quoted(subdir)}", f"hydra.sweep.dir={quoted}", "replicas=1,2"]
    code, result, err = sweep(tmp_path, *words)
    assert code == 0, (result, err)
    cells = [tmp_path / top / name for name in folders]
    stamps = [(cell / "stub.json").stat().st_mtime_ns for cell in cells]
    assert all((cell / name).is_file() for cell in cells for name in ("result.json", "cell.json"))
    assert (tmp_path / top / "sweep.json").is_file()  # and no cell's folder
    code, result, err = sweep(tmp_path, *words, "sweep.resume=true")
    assert code == 0, (result, err)
    assert [(cell / "stub.json").stat().st_mtime_ns for cell in cells] == stamps
    assert len(list((tmp_path / top).rglob("stub.json"))) == 2  # none ran in another folder


@pytest.mark.parametrize("parallel", [1, min(2, len(os.sched_getaffinity(0)))])
def test_cells_that_would_share_a_folder_are_told(tmp_path: Path, parallel: int) -> None:
    code, result, err = sweep(
        tmp_path, "hydra.sweep.subdir=${model.name}", "replicas=1,2", f"sweep.parallel={parallel}"
    )
    assert code == 2
    assert [cell["ok"] for cell in result["cells"]] == [True, False], err
    assert "hydra.sweep.subdir" in result["cells"][1]["error"]
    assert record(tmp_path, "tiny_llama", "result.json")["ok"] is True  # the other's is untouched


@pytest.mark.parametrize("parallel", [1, min(2, len(os.sched_getaffinity(0)))])
def test_each_cell_has_one_outcome_told_letter_by_letter(tmp_path: Path, parallel: int) -> None:
    cells = "+engine.extra.stub=lies,torn,unlike,shouts,well"
    (tmp_path / "out" / "4" / "cell.json").mkdir(parents=True)  # what cannot be written
    code, result, err = sweep(tmp_path, cells, "sweep.retries=1", f"sweep.parallel={parallel}", "replicas=1")
    assert code == 1, err
    lies, torn, unlike, shouts, well = result["cells"]
    assert lies["error"] == "it ended with exit code 7 after it was done"
    assert torn["error"] == "it ended with exit code 1 and said nothing"
    assert unlike["error"] == "its process was killed by SIGKILL"
    assert "replicas" not in record(tmp_path, 2, "result.json")  # of the attempt before
    assert "failed: engine=fake model=tiny_llama +engine.extra.stub=shouts replicas=1: [/x] of [bold]x :smile:" in err
    assert shouts["error"].startswith("[/x] of [bold]x :smile:")
    assert (well["ok"], "IsADirectoryError" in well["error"]) == (False, True)
