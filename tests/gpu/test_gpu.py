"""The main job on NVIDIA GPUs: CUDA graphs on, real sharing. Skipped, and saying so, where there is none."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two NVIDIA GPUs: one for each replica")
@pytest.mark.parametrize("model", ["tiny_llama", "tiny_deepseek_v2"])
def test_the_second_replica_loads_on_gpus(tmp_path: Path, model: str) -> None:
    # one prompt at a time: how others share its batch decides how bfloat16 rounds
    alone = ["engine.max_num_seqs=1", "engine.kv_cache_gib=1"]
    overrides = [f"model={model}", "model.dtype=bfloat16", "engine=gpu", *alone]
    command = [sys.executable, "jobs/run.py", *overrides, "graph_cache=per_run", f"hydra.run.dir={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)
    result = json.loads(done.stdout.splitlines()[-1].removeprefix("RESULT "))
    assert done.returncode == 0, done.stderr
    assert (result["second_replica"], result["same_tokens"]) == ("hit", True)
