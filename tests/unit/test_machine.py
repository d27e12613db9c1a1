"""CPUs, memory and threads are what a container may use, not what the machine has."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from orchestrator.cluster import machine, provenance
from orchestrator.cluster.shape import local_shape
from orchestrator.config import ClusterConfig
from orchestrator.engine.vllm import supervisor

CORES = 8


@pytest.fixture(autouse=True)
def cgroup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(CORES)))
    return tmp_path


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({}, CORES),
        ({"cpu.max": "max 100000\n"}, CORES),
        ({"cpu.max": "350000 100000\n"}, 3),
        ({"cpu.max": "50000 100000\n"}, 1),  # Ray would count none
        ({"cpu.max": "9900000 100000\n"}, CORES),
        ({"cpu.max": "nonsense"}, CORES),
        ({"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, CORES),
    ],
)
def test_a_quota_counts_in_planning_and_in_results(cgroup: Path, files: dict[str, str], cpus: int) -> None:
    for name, content in files.items():
        (cgroup / name).parent.mkdir(exist_ok=True)
        (cgroup / name).write_text(content)
    assert machine.cpus() == cpus
    assert local_shape(ClusterConfig(num_gpus=0)).nodes[0].cpus == cpus
    assert provenance.machine()["cores"] == cpus


@pytest.mark.parametrize("name", ["memory.max", "memory/memory.limit_in_bytes"])
def test_a_limit_of_memory_counts(cgroup: Path, name: str) -> None:
    whole = machine.memory()
    (cgroup / name).parent.mkdir(exist_ok=True)
    (cgroup / name).write_text("max\n")
    assert machine.memory() == whole
    (cgroup / name).write_text(f"{64 << 20}\n")
    assert machine.memory() == 64 << 20
    assert provenance.machine()["memory_gib"] == 0.1


@pytest.mark.parametrize(("size", "threads"), [(1, "3"), (2, "1"), (8, "1")])
def test_threads_under_a_quota_are_as_many_and_bound_nowhere(
    cgroup: Path, size: int, threads: str, monkeypatch
) -> None:
    for name in ("VLLM_CPU_OMP_THREADS_BIND", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "")  # so that it is as before afterwards
        monkeypatch.delenv(name)
    supervisor._bind_threads(1)
    assert "VLLM_CPU_OMP_THREADS_BIND" not in os.environ  # vLLM binds by itself
    (cgroup / "cpu.max").write_text("300000 100000")
    supervisor._bind_threads(size)
    assert (os.environ["VLLM_CPU_OMP_THREADS_BIND"], os.environ["OMP_NUM_THREADS"]) == ("nobind", threads)
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0-1")
    supervisor._bind_threads(size)
    assert os.environ["VLLM_CPU_OMP_THREADS_BIND"] == "0-1"
