"""The promise, on real vLLM: the second replica loads, compiles nothing, and says the same as stock vLLM."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from tests.engine.conftest import shared_memory

ROOT = Path(__file__).resolve().parents[2]


def job(*arguments: str, timeout: float = 600, cache: str | None = "per_run") -> tuple[int, dict, str]:
    environment = {**os.environ, "VLLM_NO_USAGE_STATS": "1"}
    command = [sys.executable, *arguments, *([f"graph_cache={cache}"] if cache else [])]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout, check=False
    )
    last = done.stdout.strip().splitlines()[-1:] or [""]
    assert last[0].startswith("RESULT "), done.stdout + done.stderr
    return done.returncode, json.loads(last[0].removeprefix("RESULT ")), done.stderr


def end(service: subprocess.Popen) -> None:
    """Ctrl-C; killed, and its processes with it, where that does not help: the next test gets the machine back."""
    if service.poll() is None:
        service.send_signal(signal.SIGINT)
        try:
            service.wait(timeout=120)
        except subprocess.TimeoutExpired:
            children = psutil.Process(service.pid).children(recursive=True)
            for process in [*children, service]:
                process.kill()
            raise


def engine_processes() -> list[str]:
    """What is left after five seconds: reapers end a moment after their replicas."""
    deadline = time.monotonic() + 5.0
    while True:
        lines = [" ".join(p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"])]
        left = [line for line in lines if any(w in line for w in ("VLLM::", "zygote", "engine.processes", "raylet"))]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.2)


def test_the_second_replica_loads_and_both_say_what_stock_says(tmp_path: Path) -> None:
    segments = shared_memory()
    model = ["model=tiny_llama", "model.tiny.num_hidden_layers=3"]
    code, result, err = job("jobs/sweep.py", "-m", *model, "fast_cold_start=true,false", f"hydra.sweep.dir={tmp_path}")
    assert code == 0, err
    ours, stock = result["cells"]
    assert ours["same_tokens"]
    assert stock["same_tokens"]
    assert ours["tokens_as_stock"] is True
    assert ours["second_replica"] == "hit"
    assert stock["second_replica"] == "stock"
    first, second = json.loads((tmp_path / "0" / "result.json").read_text())["replicas"]
    assert first["receipt"]["published"]
    assert (first["engine"]["loaded"], first["engine"]["compiled"]) == (0, 1)
    assert (second["engine"]["loaded"], second["engine"]["compiled"]) == (1, 0)
    assert second["engine"]["kv_tokens"] == first["engine"]["kv_tokens"] > 0
    assert first["engine"]["notes"] == ["kv_update=layer_index: 3 KV updates stay in compiled pieces."]
    for replica in (first, second):
        whole = sum(phase["seconds"] for phase in replica["phases"])
        assert abs(whole - replica["first_token_s"]) <= 0.05 * replica["first_token_s"]
        assert "dynamo" in {p["name"] for p in first["phases"]}
    assert "dynamo" not in {p["name"] for p in second["phases"]}
    assert engine_processes() == []
    assert shared_memory() <= segments


def test_tensor_parallel_ranks_share_too(tmp_path: Path) -> None:
    size = ["engine.tensor_parallel_size=2", "engine.cpus_per_rank=0.5", "cluster.num_cpus=2"]
    code, result, err = job("jobs/run.py", "model=tiny_llama", *size, f"hydra.run.dir={tmp_path}")
    assert code == 0, err
    assert (result["second_replica"], result["same_tokens"]) == ("hit", True)
    first, second = json.loads((tmp_path / "result.json").read_text())["replicas"]
    assert (len(first["engine"]["saved"]), first["engine"]["loaded"]) == (2, 0)
    assert (second["engine"]["loaded"], second["engine"]["compiled"]) == (2, 0)
    assert engine_processes() == []
