"""Ray starts though its agents are slow: raylet waits 15 s for ports that its agents choose, and for given ones not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.unit.commands import run

SLOW = """
import pathlib, sys, time
agents = [word for word in sys.orig_argv if word.endswith(("dashboard/agent.py", "runtime_env/agent/main.py"))]
if agents:
    pathlib.Path({folder!r}, agents[0].replace("/", "_")).touch()
    time.sleep(20)
"""
START = """
import contextlib, sys
import ray
from orchestrator.cluster import ray_start

if sys.argv[1] == "not given":
    ray_start._given = lambda ports: contextlib.nullcontext()
    ray_start._ATTEMPTS = 1
ray_start.start(lambda who, what: None, num_cpus=1, include_dashboard=False, log_to_driver=False)
print("answer:", ray.get(ray.remote(lambda: 42).remote()))
ray.shutdown()
"""


@pytest.fixture
def slow_agents(tmp_path: Path) -> dict[str, str]:
    """Variables with which every agent of Ray's sleeps first, and says so in a file."""
    (tmp_path / "sitecustomize.py").write_text(SLOW.format(folder=str(tmp_path)))
    return {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path.cwd())])}


def test_ray_starts_though_its_agents_are_slow(slow_agents: dict[str, str], tmp_path: Path) -> None:
    done = run("-c", START, "given", **slow_agents)
    assert "answer: 42" in done.stdout, done.stderr[-3000:]
    assert done.returncode == 0
    assert len(list(tmp_path.glob("*.py"))) == 3  # both agents were


def test_without_given_ports_it_does_not(slow_agents: dict[str, str]) -> None:
    """Ray issue 65983. When this fails, Ray waits by itself, and ray_start.py may go."""
    done = run("-c", START, "not given", **slow_agents)
    assert done.returncode == 1
    assert "ClusterError: Ray did not start" in done.stderr
    assert "Timed out waiting for file" in done.stderr.rpartition("ClusterError: ")[2]
