"""Sweeps, suites and benchmarks of real runs; what a sweep does with its cells: tests/commands/test_sweep_cells.py."""

from __future__ import annotations

import json

import pytest

from tests.footprint import Footprint
from tests.ray.ray_nodes import free_port
from tests.ray.test_jobs import FAKE, job
from tests.unit import own_folder
from tests.unit.commands import ROOT, check_schema, finish

pytestmark = pytest.mark.usefixtures("no_ray")


def test_a_sweep_sets_ours_beside_stock_and_goes_on_after_a_failure(mine: Footprint) -> None:
    out = mine.folder / "out"
    cells = ["-m", *FAKE, "fast_cold_start=true,false", "engine.tensor_parallel_size=1,3", f"hydra.sweep.dir={out}"]
    code, result, err = finish(job("sweep", *cells, mine=mine))
    assert code != 0
    assert [cell["ok"] for cell in result["cells"]] == [True, False, True, False]
    assert "does not divide tiny_llama's 4 attention heads" in result["cells"][1]["error"]
    assert result["cells"][0]["tokens_as_stock"] is True
    assert (out / "report.html").is_file()
    check_schema("sweep", json.loads((out / "sweep.json").read_text()))
    assert "failed:" in err
    mine.check()


def test_cells_run_models_and_engines_of_ones_own(mine: Footprint) -> None:
    out, own = mine.folder / "out", own_folder.make(mine.folder / "own")
    words = ["-m", f"--config-dir={own}", *FAKE, "model=mine", "engine=mine", "replicas=1,2"]
    code, result, err = finish(job("sweep", *words, f"hydra.sweep.dir={out}", mine=mine))
    assert [cell["ok"] for cell in result["cells"]] == [True, True], err
    assert code == 0
    for number in range(2):
        config = json.loads((out / str(number) / "result.json").read_text())["config"]
        assert (config["model"]["tiny"]["num_hidden_layers"], config["engine"]["max_num_seqs"]) == (2, 3)
        assert config["search_path"] == [f"file://{own}"]
    mine.check()


def test_a_suite_goes_on_after_a_failure_and_makes_one_page(mine: Footprint) -> None:
    out = mine.folder / "out"
    suite = ["bench=fake_suite", f"hydra.searchpath=[file://{ROOT}/tests/ray/conf]", f"hydra.run.dir={out}"]
    code, result, err = finish(job("bench", *suite, mine=mine))
    assert code == 1, err
    first, skipped, wrong = result["benches"]
    assert first["ok"]
    assert "needs 64 GPUs" in skipped["skipped"]
    assert "bench=depth varies" in wrong["error"]
    data = json.loads((out / "suite.json").read_text())
    (bench,) = data["results"]
    check_schema("bench", bench)
    assert [row["layers"] for row in bench["rows"]] == [2, 4]
    assert "<svg" in (out / "report.html").read_text()
    assert "bench=depth" in (out / "RESULTS.md").read_text()
    mine.check()


def test_large_clusters_are_simulated_from_what_is_measured(mine: Footprint) -> None:
    out = mine.folder / "out"
    bench = ["bench=simulate", *FAKE, "bench.rounds=1", "bench.nodes=[2,200]", f"hydra.run.dir={out}"]
    code, _, err = finish(job("bench", *bench, mine=mine))
    assert code in (0, 1), err  # how near the model comes is a timing
    assert (out / "bench.json").is_file(), err
    data = json.loads((out / "bench.json").read_text())
    check_schema("bench", data)
    checks = [row for row in data["rows"] if row["start"] == "checked"]
    assert [row["compiled"] for row in checks] == [1, 1, 1]  # single flight, for 2, 4 and 8 replicas at once
    assert all(row["measured_s"] > 0 and row["simulated_s"] > 0 for row in checks)
    assert {row["without"] for row in data["rows"]} == {"-", "placement", "registry", "network", "install", "turns"}
    assert min(data["summary"]["constants_ms"].values()) >= 0
    mine.check()


def test_the_simulated_service_is_set_beside_a_real_one(mine: Footprint) -> None:
    out = mine.folder / "out"
    bench = ["bench=autoscale_check", *FAKE, "bench.seconds=60", "bench.starts_s=[1]", f"serve.port={free_port()}"]
    code, _, err = finish(job("bench", *bench, f"hydra.run.dir={out}", mine=mine))
    assert code == 0, err  # every request was answered
    data = json.loads((out / "bench.json").read_text())
    check_schema("bench", data)
    ways = [(row["way"], row["policy"]) for row in data["rows"]]
    assert ways == [(way, policy) for policy in ("reactive", "ahead") for way in ("service", "simulated")]
    for real, made in zip(data["rows"][::2], data["rows"][1::2], strict=True):
        assert real["requests"] == made["requests"] > 60
        assert real["measured_start_s"] >= 1.0
        assert real["replica_seconds"] >= 59
    mine.check()


def test_what_a_models_origin_sends_is_measured(mine: Footprint) -> None:
    out = mine.folder / "out"
    bench = [
        "bench=weights",
        "bench.sizes_mib=[8]",
        "bench.nodes=[1,2]",
        "bench.rounds=1",
        "weights.piece_mib=1",
        "bench.simulated_nodes=[8]",
    ]
    code, _, err = finish(job("bench", *bench, f"hydra.run.dir={out}", mine=mine))
    assert code == 0, err
    data = json.loads((out / "bench.json").read_text())
    check_schema("bench", data)
    assert data["summary"]["origin_reads"] == {"share": {"1": 1.0, "2": 1.0}, "alone": {"1": 1.0, "2": 2.0}}
    assert all(0 < row["first_s"] <= row["last_s"] <= row["whole_s"] for row in data["rows"])
    mine.check()
