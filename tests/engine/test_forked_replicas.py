"""Real replicas forked from a zygote: no device before the fork, and every loss is made good by the next start."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest
import ray

from orchestrator.bench.resources import make_room
from orchestrator.engine import Sampling
from orchestrator.errors import ReplicaError
from orchestrator.graph_cache.restore_result import Outcome
from orchestrator.runs import run
from tests import footprint
from tests.footprint import Footprint
from tests.waiting import HANG_S, wait_for

PROMPTS = ["one", "two three"]
GREEDY = Sampling(max_tokens=8, ignore_eos=True)


PRELOADED = """
import os
import orchestrator.engine.vllm.zygote_imports, torch
from orchestrator.engine.vllm import fork_context
from torch._inductor import async_compile

assert not torch.cuda.is_initialized()
fork_context._adopt_environment()
assert async_compile.get_compile_threads() == 1  # as vLLM has it
"""


def test_the_import_initialises_no_device_and_a_fork_adopts_its_environment() -> None:
    done = subprocess.run([sys.executable, "-c", PRELOADED], capture_output=True, text=True, timeout=HANG_S)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("graphs")


def zygotes() -> list[psutil.Process]:
    """Zygotes alone: their forks, which look alike, have them for a parent or lead no process group."""
    alike = footprint.processes("orchestrator.zygote.server")
    pids = {process.pid for process in alike}
    return [p for p in alike if p.ppid() not in pids and os.getpgid(p.pid) == p.pid]


def other_threads(pid: int) -> set[str]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return {(task / "comm").read_text().strip() for task in tasks if int(task.name) != pid}


def test_every_loss_is_made_good_by_the_next_start(
    make_app, state: str, graphs: Path, tmp_path: Path, mine: Footprint
) -> None:
    app = make_app("model=tiny_llama", f"graph_cache.store={graphs}", f"state_dir={state}", "replicas=1")
    app.graph_cache.node_folder = str(tmp_path / "node")
    make_room(app, 1)
    with run.session(app, lambda who, what: None) as session:
        fleet = session.fleet(app)
        assert fleet.start_one("replica-0").receipt.outcome is Outcome.compiled
        tokens = [a.token_ids for a in fleet.ask_one("replica-0", PROMPTS, GREEDY)]

        def again() -> None:
            report = fleet.restart("replica-0")
            assert report.receipt.outcome is Outcome.hit
            assert (report.facts.loaded, report.facts.compiled) == (1, 0)
            assert [a.token_ids for a in fleet.ask_one("replica-0", PROMPTS, GREEDY)] == tokens

        again()  # forked from the zygote that the first start made
        (zygote,) = zygotes()
        assert other_threads(zygote.pid) <= {"jemalloc_bg_thd"}  # Ray's, which looks after forks itself

        zygote.kill()  # while its replica lives
        wait_for(lambda: not zygote.is_running())
        assert [a.token_ids for a in fleet.ask_one("replica-0", PROMPTS, GREEDY)] == tokens
        again()

        forkserver_of(fleet.reports["replica-0"].pid).kill()
        again()

        cancelled = _killed_half_way(fleet)
        wait_for(lambda: not psutil.pid_exists(cancelled))
        again()
    wait_for(lambda: not zygotes())
    mine.check()


def forkserver_of(pid: int) -> psutil.Process:
    """The fork that a replica makes at its birth."""
    children = psutil.Process(pid).children()  # one may be a helper of vLLM's that has just ended
    (found,) = [p for p in children if "orchestrator.zygote.server" in footprint.line(p).split()]
    return found


def _killed_half_way(fleet) -> int:
    """Kill a replica while its engine starts; returns its process id."""
    fleet.stop_one("replica-0")
    raised: list[BaseException] = []

    def start() -> None:
        try:
            fleet.start_one("replica-0")
        except ReplicaError as error:
            raised.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    wait_for(lambda: "replica-0" in fleet._actors)
    pid = ray.get(fleet._actors["replica-0"].__ray_call__.remote(lambda _: os.getpid()), timeout=HANG_S)
    wait_for(lambda: bool(forkserver_of(pid).children()))
    os.kill(pid, signal.SIGKILL)
    thread.join(timeout=HANG_S)
    assert raised
    fleet._actors.pop("replica-0", None)
    return pid


def test_a_preload_module_that_fails_costs_time_not_a_replica(
    make_app, state: str, graphs: Path, tmp_path: Path, monkeypatch
) -> None:
    from orchestrator.engine.vllm import fork_context

    monkeypatch.setattr(fork_context, "MODULE", "tests.ray.no_such_module")
    app = make_app("model=tiny_llama", f"graph_cache.store={graphs}", f"state_dir={state}", "replicas=1")
    make_room(app, 1)
    with run.session(app, lambda who, what: None) as session:
        report = session.fleet(app).start_one("replica-0")
        assert report.receipt.outcome in (Outcome.compiled, Outcome.hit)
        assert zygotes() == []
