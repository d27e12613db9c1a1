"""Ray workers forked from a zygote: they are what their client would have been, and end as they should."""

from __future__ import annotations

import gc
import json
import os
import random
import signal
import socket
import subprocess
import sys
from functools import partial
from typing import Any

import numpy as np
import psutil
import pytest
import ray

from orchestrator import zygote
from orchestrator.zygote import client
from tests.footprint import line, processes
from tests.unit.commands import ROOT
from tests.waiting import HANG_S, wait_for

PRELOAD = "tests.ray.light_zygote_imports"


def forked(**variables: str) -> Any:
    """A class of actors that are forked from a zygote."""

    class Worker:
        def facts(self) -> dict[str, Any]:
            return {
                "pid": os.getpid(),
                "parent": os.getppid(),
                "born": getattr(sys, "born_of_a_zygote", False),
                "variable": os.environ.get("ORCHESTRATOR_VARIABLE"),
                "leads": os.getpgrp() == os.getpid(),
                "collects": gc.isenabled(),
                "draw": random.random(),
                "ids": [ray.put(1).hex(), np.random.default_rng().random()],
                "folder": os.getcwd(),
            }

    runtime_env = {"py_executable": zygote.py_executable(sys.executable, PRELOAD), "env_vars": variables}
    return ray.remote(Worker).options(num_cpus=0, runtime_env=runtime_env)


def facts(actor: Any) -> dict[str, Any]:
    return ray.get(actor.facts.remote(), timeout=HANG_S)


def zygotes() -> list[psutil.Process]:
    """This test's zygotes alone: their forks, which look alike, have them for a parent or lead no process group."""
    alike = [p for p in processes("orchestrator.zygote.server") if PRELOAD in line(p)]
    pids = {process.pid for process in alike}
    return [p for p in alike if p.ppid() not in pids and os.getpgid(p.pid) == p.pid]


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_forks_share_a_zygote_and_nothing_else(local_ray: None) -> None:
    actors = [forked(ORCHESTRATOR_VARIABLE=str(i)).remote() for i in range(2)]
    first, second = [facts(actor) for actor in actors]
    assert first["born"]
    assert first["leads"]
    assert first["collects"]
    assert first["parent"] == second["parent"]
    assert first["pid"] != second["pid"]
    assert (first["variable"], second["variable"]) == ("0", "1")
    assert first["draw"] != second["draw"]
    assert not set(first["ids"]) & set(second["ids"])


def test_a_killed_fork_leaves_the_zygote_to_the_next(local_ray: None) -> None:
    before = facts(actor := forked().remote())
    ray.kill(actor)
    wait_for(lambda: gone(before["pid"]))
    assert facts(forked().remote())["parent"] == before["parent"]


def test_a_killed_zygote_takes_nobody_along_and_is_replaced(local_ray: None) -> None:
    before = facts(old := forked().remote())
    os.kill(before["parent"], signal.SIGKILL)
    wait_for(lambda: gone(before["parent"]))
    after = facts(forked().remote())
    assert after["born"]
    assert after["parent"] != before["parent"]
    assert facts(old)["pid"] == before["pid"]


def test_each_job_of_a_cluster_has_forks(local_ray: None) -> None:
    """Ray's library keeps the id of the job that it was loaded for: a fork of another job's would get no task, ever."""
    here = facts(forked().remote())
    program = (
        "import json, ray; from tests.ray import test_zygote as t; "
        f"ray.init({ray.get_runtime_context().gcs_address!r}, log_to_driver=False); "
        "print(json.dumps(t.facts(t.forked().remote())))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=2 * HANG_S, check=False
    )
    there = json.loads(done.stdout.splitlines()[-1])
    assert there["born"], done.stderr
    assert there["parent"] != here["parent"]


def test_a_start_that_is_cancelled_half_way_leaves_no_fork(local_ray: None) -> None:
    before = {process.pid for process in processes(client.__file__)}
    born = facts(actor := forked().remote())
    (stand_in,) = [p for p in processes(client.__file__) if p.pid not in before]
    stand_in.kill()
    wait_for(lambda: gone(born["pid"]))
    del actor
    assert facts(forked().remote())["parent"] == born["parent"]


def test_where_the_zygote_cannot_start_the_worker_is_an_ordinary_python(local_ray: None) -> None:
    for running in zygotes():
        running.kill()
        wait_for(partial(gone, running.pid))
    found = facts(forked(ORCHESTRATOR_TEST_BROKEN="1").remote())
    assert not found["born"]
    assert found["parent"] not in [z.pid for z in zygotes()]


def test_it_ends_with_its_raylet(local_ray: None, shared_ray) -> None:
    parent = facts(forked().remote())["parent"]
    path = client.address(PRELOAD, 0).parent
    assert list(path.glob("*.sock"))
    shared_ray.end()
    wait_for(lambda: gone(parent))


@pytest.mark.parametrize(
    ("variable", "another"),
    [
        ("VLLM_BATCH_INVARIANT", True),
        ("TORCHINDUCTOR_FREEZING", True),
        ("FLASHINFER_WORKSPACE_BASE", True),
        ("CUDA_MODULE_LOADING", True),
        ("HF_HOME", True),
        ("HOME", True),
        ("KMP_BLOCKTIME", True),
        ("PYTHONHASHSEED", True),
        ("GOMP_CPU_AFFINITY", False),
        ("CUDA_VISIBLE_DEVICES", False),
        ("RAY_JOB_ID", True),
        ("HF_HUB_OFFLINE", False),
        ("OMP_NUM_THREADS", False),
    ],
)
def test_what_libraries_read_at_import_has_a_zygote_of_its_own(variable: str, another: bool, monkeypatch) -> None:
    monkeypatch.setenv(variable, "0")
    before = client.address(PRELOAD, 1)
    monkeypatch.setenv(variable, "1")
    assert (client.address(PRELOAD, 1) != before) == another


def test_environments_beyond_a_nodes_zygotes_get_an_ordinary_python(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(client.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(client, "_ANSWER_S", 0.01)  # those here never answer
    listening: list[socket.socket] = []
    monkeypatch.setattr(client, "_start", lambda listener, *_: listening.append(listener.dup()))

    def connect(environment: str, raylet: int) -> None:
        monkeypatch.setenv("VLLM_TEST", environment)
        client._connect(client.address(PRELOAD, raylet), PRELOAD, raylet).close()

    for i in range(client._MOST):
        connect(str(i), 1)
    connect("0", 1)
    with pytest.raises(OSError, match=f"the node has {client._MOST} zygotes already, for other environments and jobs"):
        connect("another", 1)
    connect("another", 2)
    assert len(listening) == client._MOST + 1
    listening.pop(0).close()  # the one that is gone no longer counts
    connect("another", 1)
    for listener in listening:
        listener.close()


def test_a_folder_that_others_can_write_is_not_trusted(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client.tempfile, "gettempdir", lambda: str(tmp_path))
    folder = client.address(PRELOAD, 1).parent
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o777)
    with pytest.raises(PermissionError, match="not ours alone"):
        client.address(PRELOAD, 1)
