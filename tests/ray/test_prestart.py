"""A Ray worker that waits: the next actor of its kind gets it, and no other; it ends with its job."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import psutil
import pytest
import ray

from orchestrator import compat, zygote
from orchestrator.cluster import prestart
from orchestrator.compat import table
from orchestrator.engine.vllm import fork_context
from orchestrator.fleet import node_warmer
from orchestrator.fleet.fleet import Fleet
from orchestrator.fleet.plan import ReplicaPlan
from orchestrator.graph_cache.settings import CacheSettings
from tests.footprint import line
from tests.ray.test_zygote import PRELOAD, gone, zygotes
from tests.unit.commands import ROOT
from tests.waiting import HANG_S, wait_for


def asking(**variables: str) -> Any:
    """An actor that can ask for another worker like its own."""

    class Asking:
        def pid(self) -> int:
            return os.getpid()

        def ask(self) -> bool:
            return prestart.one_more()

    runtime_env = {"py_executable": zygote.py_executable(sys.executable, PRELOAD), "env_vars": variables}
    return ray.remote(Asking).options(num_cpus=0, runtime_env=runtime_env).remote()


def idle(zygote: psutil.Process) -> set[int]:
    """A zygote's forks that have nothing to do."""
    return {fork.pid for fork in zygote.children() if "ray::IDLE" in line(fork)}


def waiting() -> set[int]:
    """Those of this test's zygotes."""
    return {pid for one in zygotes() for pid in idle(one)}


def one_waits(before: set[int]) -> int:
    wait_for(lambda: len(waiting() - before) == 1)
    return (waiting() - before).pop()


def test_the_next_actor_gets_the_worker_that_waits(local_ray: None) -> None:
    first, before = asking(ORCHESTRATOR_VARIABLE="mine"), waiting()
    assert ray.get(first.ask.remote(), timeout=HANG_S)
    pid = one_waits(before)
    other = asking(ORCHESTRATOR_VARIABLE="another's")  # as it needs another environment
    assert ray.get(other.pid.remote(), timeout=HANG_S) != pid
    second = asking(ORCHESTRATOR_VARIABLE="mine")
    assert ray.get(second.pid.remote(), timeout=HANG_S) == pid


def test_a_worker_that_waits_ends_with_its_job(local_ray: None) -> None:
    program = (
        "import ray; from tests.ray import test_prestart as t; "
        f"ray.init({ray.get_runtime_context().gcs_address!r}, log_to_driver=False); "
        "actor, before = t.asking(), t.waiting(); "
        "assert ray.get(actor.ask.remote(), timeout=t.HANG_S); "
        "print('waits', t.one_waits(before))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=2 * HANG_S, check=False
    )
    assert "waits" in done.stdout, done.stderr
    pid = int(done.stdout.split()[-1])
    wait_for(lambda: gone(pid))


def _asks(replica: ReplicaPlan) -> ReplicaPlan:
    return replace(replica, spec=replace(replica.spec, prestart_worker=True))


def test_a_replica_leaves_a_worker_to_the_next_one(make_fleet: Callable[..., Fleet]) -> None:
    with make_fleet(replicas=2) as fleet:
        fleet.plan = replace(fleet.plan, replicas=tuple(map(_asks, fleet.plan.replicas)))
        fleet.start_one("replica-0")
        parent = psutil.Process(fleet.reports["replica-0"].pid).parent()
        wait_for(lambda: idle(parent))
        (pid,) = idle(parent)
        assert fleet.start_one("replica-1").pid == pid


@pytest.mark.parametrize("fault", ["gone", "hangs up"])
def test_where_no_worker_can_wait_nothing_is_lost(fault: str, local_ray: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise OSError("as told")

    if fault == "gone":
        monkeypatch.setattr(compat, "on", lambda feature: False)
    else:
        plain = compat.get
        monkeypatch.setattr(compat, "get", lambda name: refuse if name is table.CHANNEL else plain(name))
    assert not prestart.one_more()


def test_a_node_that_was_made_ready_has_one(make_fleet: Callable[..., Fleet], cache: CacheSettings) -> None:
    with make_fleet(replicas=1) as fleet:
        here = ray.get_runtime_context().get_node_id()
        made = node_warmer.make_ready([here], cache, fork_context.MODULE, workers=[prestart.AS_HERE])
        ray.get(made[here], timeout=HANG_S)
        forked = {"py_executable": zygote.py_executable(sys.executable, fork_context.MODULE)}
        parent = ray.remote(lambda: os.getppid()).options(num_cpus=0, runtime_env=forked).remote()
        found = psutil.Process(ray.get(parent, timeout=HANG_S))
        wait_for(lambda: len(idle(found)) == 2)  # one has run the tasks
        there = idle(found)
        assert fleet.start_one("replica-0").pid in there
