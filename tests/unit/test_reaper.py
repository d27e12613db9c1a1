"""When a replica is killed, the reaper ends what it had started; resource trackers are spared."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from orchestrator.engine.vllm import reaper
from tests.waiting import HANG_S, wait_for

PARENT = """
import os, subprocess, sys, time
from orchestrator.engine.vllm import reaper
reaper.start_reaper({marker!r})
os.environ[reaper.MARKER] = {marker!r}
stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
subprocess.Popen([sys.executable, "-c", stubborn], start_new_session=True)
tracker = "import time; time.sleep(3600) # multiprocessing.resource_tracker import main"
spared = subprocess.Popen([sys.executable, "-c", tracker], start_new_session=True)
print(spared.pid, flush=True)
time.sleep(600)
"""


TITLED = """
import subprocess, sys
from orchestrator.engine.contract import EngineSpec
from orchestrator.engine.vllm import reaper
from orchestrator.engine.vllm.supervisor import Supervisor
supervisor = Supervisor(EngineSpec("r", "m", {{}}, {{}}, {folder!r}, {folder!r}, 9.0, cpu=True))
supervisor.enter()
core = "import setproctitle, time; setproctitle.setproctitle('VLLM::EngineCore'); print(flush=True); time.sleep(600)"
child = subprocess.Popen([sys.executable, "-c", core], stdout=subprocess.PIPE)
child.stdout.readline()
print([p.pid for p in reaper.marked(supervisor._marker)] == [child.pid])
child.kill()
supervisor.end()
"""


@pytest.fixture
def marker() -> str:
    return f"test-{os.getpid()}-{time.time_ns()}"


def test_the_reaper_ends_what_a_killed_replica_started(marker: str) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT.format(marker=marker)], stdout=subprocess.PIPE)
    spared = psutil.Process(int(parent.stdout.readline()))
    wait_for(lambda: len(reaper.marked(marker)) == 1)
    (child,) = reaper.marked(marker)
    parent.kill()
    parent.wait()
    wait_for(lambda: not child.runs())
    assert not reaper.marked(marker)
    assert spared.is_running()
    spared.kill()


def test_a_process_that_gives_itself_a_title_stays_marked(tmp_path: Path) -> None:
    program = [sys.executable, "-c", TITLED.format(folder=str(tmp_path))]
    done = subprocess.run(program, capture_output=True, text=True, timeout=HANG_S)
    assert (done.stdout, done.returncode) == ("True\n", 0), done.stderr


def test_only_marked_processes_are_ended(marker: str) -> None:
    sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
    ours = subprocess.Popen(sleep, env={**os.environ, reaper.MARKER: marker})
    other = subprocess.Popen(sleep, env={**os.environ, reaper.MARKER: f"{marker}-other"})
    try:
        wait_for(lambda: len(reaper.marked(marker)) == 1)
        assert reaper.kill_marked(marker, grace_s=0.5) == [ours.pid]
        assert not psutil.pid_exists(ours.pid)
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def held(program: str, marker: str) -> tuple[subprocess.Popen[str], Path]:
    """A marked process, and what it maps and has said the name of; that is not removed while it is mapped."""
    environment = {**os.environ, reaper.MARKER: marker}
    holder = subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True)
    name = Path("/dev/shm") / holder.stdout.readline().strip()
    assert reaper.shared_segments(marker) == {name}
    reaper.remove_segments({name})
    assert name.exists()
    return holder, name


HOLD = """
import sys, time
from multiprocessing import resource_tracker, shared_memory
resource_tracker.register = lambda *a: None  # as vLLM's: nobody would clean up
segment = shared_memory.SharedMemory(create=True, size=64)
print(segment.name, flush=True)
time.sleep(600)
"""
TELLS = """
import sys, time
from pathlib import Path
from orchestrator.engine.vllm import reaper
mine = reaper.start_reaper(sys.argv[1])
mine.note({Path(sys.argv[2])})
print(mine.process.pid, flush=True)
time.sleep(600)
"""


def test_segments_go_with_the_last_process_that_maps_them(marker: str) -> None:
    _, name = held(HOLD, marker)
    reaper.kill_marked(marker, grace_s=0.5)
    assert not name.exists()


MAKES = """
import itertools, mmap, os, subprocess, sys, time
kept = []
print("begun", flush=True)
for i in itertools.count():
    name = f"/dev/shm/psm_{os.getpid()}_{i}"
    fd = os.open(name, os.O_CREAT | os.O_RDWR)
    os.ftruncate(fd, 4096)
    kept.append(mmap.mmap(fd, 4096))
    os.close(fd)
    if i % 100 == 99:
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
"""


def test_what_an_engine_makes_while_it_is_ended_goes_too(marker: str) -> None:
    """A start that fails at once is ended while EngineCore makes its segments and starts its workers."""
    environment = {**os.environ, reaper.MARKER: marker}
    maker = subprocess.Popen([sys.executable, "-c", MAKES], env=environment, stdout=subprocess.PIPE)
    assert maker.stdout is not None
    maker.stdout.readline()
    wait_for(lambda: len(reaper.marked(marker)) > 1)
    reaper.kill_marked(marker, grace_s=0.5)
    left = list(Path("/dev/shm").glob(f"psm_{maker.pid}_*"))
    for segment in left:
        segment.unlink()
    assert (len(left), reaper.marked(marker)) == (0, [])


def test_what_a_replica_noted_goes_with_it_although_its_engine_ended_before(marker: str) -> None:
    """Between two of the reaper's looks: here it never finds the engine."""
    holder, name = held(HOLD, marker)
    holder.kill()
    holder.wait()
    parent = subprocess.Popen([sys.executable, "-c", TELLS, marker, name], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    parent.stdout.readline()
    parent.kill()
    parent.wait()
    wait_for(lambda: not name.exists())


def test_semaphores_go_with_their_maker(marker: str) -> None:
    hold = (
        "import time, multiprocessing\n"
        "lock = multiprocessing.get_context('spawn').Lock()\n"
        "print('sem.' + lock._semlock.name.removeprefix('/'), flush=True)\n"
        "time.sleep(600)"
    )
    holder, name = held(hold, marker)
    (tracker,) = psutil.Process(holder.pid).children()
    tracker.kill()  # as Ray does
    reaper.kill_marked(marker, grace_s=0.5)
    assert not name.exists()
