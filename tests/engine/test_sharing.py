"""The promise, on real vLLM: the second replica loads, compiles nothing, and says the same as stock vLLM."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import psutil

from tests.footprint import Footprint
from tests.unit.commands import finish, start
from tests.waiting import HANG_S


def job(mine: Footprint, *arguments: str, cache: str | None = "per_run") -> tuple[int, dict, str]:
    """Run a job to its end: its exit code, its RESULT, and what it said besides."""
    return finish(start(*arguments, *([f"graph_cache={cache}"] if cache else []), env=mine.environment()))


def end(service: subprocess.Popen) -> None:
    """Ctrl-C; killed, and its processes with it, where that does not help: the next test gets the machine back."""
    if service.poll() is None:
        service.send_signal(signal.SIGINT)
        try:
            service.wait(timeout=HANG_S)
        except subprocess.TimeoutExpired:
            children = psutil.Process(service.pid).children(recursive=True)
            for process in [*children, service]:
                process.kill()
            raise


def check_replicas(folder: Path) -> None:
    """What the first compiled the second one loaded, and both say where their time went."""
    first, second = json.loads((folder / "result.json").read_text())["replicas"]
    assert first["receipt"]["published"]
    assert (first["engine"]["loaded"], first["engine"]["compiled"]) == (0, 1)
    assert (second["engine"]["loaded"], second["engine"]["compiled"]) == (1, 0)
    assert second["engine"]["kv_tokens"] == first["engine"]["kv_tokens"] > 0
    assert "kv_update=layer_index: 3 KV updates stay in compiled pieces." in first["engine"]["notes"]
    for replica in (first, second):
        whole = sum(phase["seconds"] for phase in replica["phases"])
        assert abs(whole - replica["first_token_s"]) <= 0.05 * replica["first_token_s"]
    assert "dynamo" in {p["name"] for p in first["phases"]}
    assert "dynamo" not in {p["name"] for p in second["phases"]}


MODEL = ("model=tiny_llama", "model.tiny.num_hidden_layers=3")


def test_the_second_replica_loads_and_says_the_same(tmp_path: Path, mine: Footprint) -> None:
    code, result, err = job(mine, "jobs/run.py", *MODEL, f"hydra.run.dir={tmp_path}")
    assert code == 0, err
    assert (result["second_replica"], result["same_tokens"]) == ("hit", True)
    check_replicas(tmp_path)
    mine.check()


def test_a_sweep_sets_ours_beside_stock(tmp_path: Path, mine: Footprint) -> None:
    cells = ("fast_cold_start=true,false", f"hydra.sweep.dir={tmp_path}")
    code, result, err = job(mine, "jobs/sweep.py", "-m", *MODEL, *cells)
    assert code == 0, err
    ours, stock = result["cells"]
    assert ours["same_tokens"]
    assert stock["same_tokens"]
    assert ours["tokens_as_stock"] is True
    assert ours["second_replica"] == "hit"
    assert stock["second_replica"] == "stock"
    check_replicas(tmp_path / "0")
    mine.check()


def test_tensor_parallel_ranks_share_too(tmp_path: Path, mine: Footprint) -> None:
    size = ["engine.tensor_parallel_size=2", "engine.cpus_per_rank=0.5", "cluster.num_cpus=2"]
    code, result, err = job(mine, "jobs/run.py", "model=tiny_llama", *size, f"hydra.run.dir={tmp_path}")
    assert code == 0, err
    assert (result["second_replica"], result["same_tokens"]) == ("hit", True)
    first, second = json.loads((tmp_path / "result.json").read_text())["replicas"]
    assert (len(first["engine"]["saved"]), first["engine"]["loaded"]) == (2, 0)
    assert (second["engine"]["loaded"], second["engine"]["compiled"]) == (2, 0)
    mine.check()
