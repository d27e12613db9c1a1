"""A zygote that could not fork soundly ends before its first fork, and tells later clients why."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from orchestrator.zygote import client, server
from tests.unit.commands import ROOT
from tests.waiting import HANG_S

THREADED = "tests.unit.threaded_zygote_imports"


@pytest.fixture
def raylet():
    """Something for the zygote to end with."""
    process = subprocess.Popen(["sleep", "600"])
    yield process
    process.kill()
    process.wait()


def started(path: Path, raylet: int, **variables: str) -> subprocess.Popen[str]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        command = [sys.executable, "-m", "orchestrator.zygote.server", str(listener.fileno()), str(path), THREADED]
        return subprocess.Popen(
            [*command, str(raylet)], cwd=ROOT, pass_fds=[listener.fileno()], env={**os.environ, **variables},
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip


def test_a_zygote_with_a_second_thread_ends_before_its_first_fork(tmp_path: Path, raylet) -> None:
    path = tmp_path / "zygote.sock"
    process = started(path, raylet.pid, ORCHESTRATOR_TEST_THREAD="1")
    _, said = process.communicate(timeout=HANG_S)
    assert process.returncode == 1
    assert re.fullmatch(
        rf"{re.escape(THREADED)} has started threads \(python[\d.]*\), and a fork would miss them\n", said
    )
    with pytest.raises(OSError, match="has started threads"):
        client._connect(path, THREADED, raylet.pid)


def test_humming_starts_none_in_a_zygote(tmp_path: Path, raylet) -> None:
    path = tmp_path / "zygote.sock"
    process = started(path, raylet.pid)
    client._connect(path, THREADED, raylet.pid).close()
    raylet.kill()
    assert process.communicate(timeout=HANG_S)[1] == ""
    assert process.returncode == 0
    assert not path.exists()


def test_room_is_made_by_those_without_forks(tmp_path: Path, raylet, monkeypatch) -> None:
    """Each job of a cluster has a zygote of its own, and nobody tells them that a job is over."""
    script = tmp_path / "worker.py"
    script.write_text("import time; time.sleep(600)")
    idle, busy, mine = (tmp_path / f"{raylet.pid}-{name}.sock" for name in "abc")
    ends, stays = started(idle, raylet.pid), started(busy, raylet.pid)
    monkeypatch.setenv("RAY_RAYLET_PID", str(raylet.pid))
    monkeypatch.setattr(client, "address", lambda *_: busy)
    fork = client._forked(THREADED, [str(script)])
    assert fork is not None
    folder = os.open(tmp_path, os.O_PATH)
    assert client._others(folder, mine) == 2
    client._others(folder, mine, end_idle=True)
    assert client._others(folder, mine) == 1
    assert ends.wait(HANG_S) == 0
    assert not idle.exists()
    assert stays.poll() is None
    os.close(folder)
    raylet.kill()
    fork.close()
    assert stays.wait(HANG_S) == 0


@pytest.mark.parametrize(("name", "minds"), [("jemalloc_bg_thd", False), ("cuda00001800007", False), ("worker", True)])
def test_threads_that_do_not_mind_a_fork_are_none(name: str, minds: bool) -> None:
    """An H200's driver and Ray's jemalloc have one each, and forks beside them were sound."""
    before, begun, over = server.other_threads(), threading.Event(), threading.Event()

    def run() -> None:
        Path(f"/proc/self/task/{threading.get_native_id()}/comm").write_text(name)
        begun.set()
        over.wait(HANG_S)

    thread = threading.Thread(target=run)
    thread.start()
    begun.wait(HANG_S)
    found = server.other_threads()
    over.set()
    thread.join()
    assert sorted(found) == sorted([*before, *([name] if minds else [])])
