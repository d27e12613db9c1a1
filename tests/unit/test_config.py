"""Every YAML composes, checks and plans; every kind of mistake gives one line that names the setting."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator import paths
from orchestrator.cluster.shape import ClusterShape, Node
from orchestrator.errors import ConfigError
from orchestrator.fleet.plan import make_plan
from tests.waiting import HANG_S

ROOT = Path(__file__).resolve().parents[2]
GROUPS = [p for p in sorted((ROOT / "conf").glob("*/*.yaml")) if p.parent.name != "hydra"]


@pytest.mark.parametrize("file", GROUPS, ids=lambda p: f"{p.parent.name}={p.stem}")
def test_every_yaml_composes_and_plans(file: Path, make_app) -> None:
    extra = ["model.id=/some/model"] if file.stem == "local_path" else []
    if file.stem == "per_run":  # its folder is known only inside a job
        extra = ["graph_cache.store=/tmp/graphs"]
    new = "+" if file.parent.name == "experiment" else ""  # not in the defaults list
    app = make_app(f"{new}{file.parent.name}={file.stem}", *extra)
    shape = ClusterShape((Node(cpus=64, gpus=8),))
    plan = make_plan(app, shape, model="/some/model", scratch="/scratch")
    assert len(plan.replicas) == app.replicas


def test_on_gpus_a_start_and_whoever_waits_for_its_graphs_have_half_an_hour(make_app) -> None:
    app = make_app("engine=gpu")
    assert (app.engine.start_timeout_s, app.graph_cache.wait_timeout_s) == (1800, 1800)
    assert app.engine.device.value == "gpu"
    app = make_app("engine=gpu", "engine.start_timeout_s=60", "graph_cache.wait_timeout_s=50")
    assert (app.engine.start_timeout_s, app.graph_cache.wait_timeout_s) == (60, 50)
    app = make_app("engine=cpu")
    assert app.engine.start_timeout_s == app.graph_cache.wait_timeout_s == 600


def job(folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "jobs/run.py", f"hydra.run.dir={folder}", *overrides]
    env = {**os.environ, "RAY_ADDRESS": "nowhere:1"}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=HANG_S, env=env, check=False)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model=smollm", "Could not find 'model/smollm'"),
        ("engine.tensor_paralel_size=2", "tensor_paralel_size"),
        ("engine.max_num_seqs=many", "max_num_seqs"),
        ("cold_start.kv_update=layer", "kv_update"),
        ("replicas=0", "replicas=0 has to be at least 1"),
        ("engine.tensor_parallel_size=2", "does not divide smollm2_135m's 9 attention heads"),
        ("cluster.placement_strategy=CLOSE", "has to be one of PACK"),
    ],
)
def test_a_mistake_is_one_line_before_anything_starts(override: str, said: str, tmp_path: Path) -> None:
    done = job(tmp_path, override, f"state_dir={paths.home()}")
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2, done.stderr
    assert len(errors) == 1
    assert said in errors[0]
    result = json.loads(done.stdout.splitlines()[-1].removeprefix("RESULT "))
    assert result["ok"] is False
    assert "Started a local Ray" not in done.stderr


def test_bounds_name_the_setting(make_app) -> None:
    with pytest.raises(ConfigError) as caught:
        make_app("graph_cache.lease_s=0")
    assert caught.value.where == "graph_cache.lease_s"


def test_a_path_model_needs_a_path(make_app) -> None:
    with pytest.raises(ConfigError, match=r"model\.id is empty"):
        make_app("model=local_path")
