"""What belongs to this test process: processes, shared memory and files that carry its mark.

Another Ray on the machine, or a second test process, has another mark, and is never looked at.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import threading
import uuid
from pathlib import Path

import psutil

from tests.waiting import wait_for

MARK = "ORCHESTRATOR_TEST"  # inherited by everything that a test starts
_SHARED = re.compile(r"(\d+) +/dev/shm/(\S+)")  # inode, name
_OURS = re.compile(r"orchestrator-(?!zygote-)")  # a zygote's folder stays, with its lock, for the next one
_LOOK_S = 0.25


def put_mark() -> None:
    """Give this process a mark of its own; workers of pytest-xdist each have one."""
    os.environ[MARK] = uuid.uuid4().hex


def processes(*words: str) -> list[psutil.Process]:
    """What this test process has running, without itself; with `words`, those whose command line has one of them."""
    mark = f"{MARK}={os.environ[MARK]}".encode()
    marked = {p.pid: p for p in psutil.Process().children(recursive=True)}
    rest = []
    for process in psutil.process_iter(["ppid", "status"]):
        try:
            found = mark in Path(f"/proc/{process.pid}/environ").read_bytes()
        except OSError:
            continue
        if found:
            marked[process.pid] = process
        else:
            rest.append(process)
    while more := [p for p in rest if p.info["ppid"] in marked and p.pid not in marked]:
        marked.update({p.pid: p for p in more})  # who changes its title may overwrite its environment
    marked.pop(os.getpid(), None)
    found = [p for p in marked.values() if not words or any(word in line(p) for word in words)]
    return [p for p in found if _runs(p)]


def _runs(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def line(process: psutil.Process) -> str:
    """A process's command line; "" if it has just ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


class Footprint:
    """What is started inside `with`; everything of it that is to be gone is gone when `check` returns.

    Attributes:
        folder: a short temporary folder: TMPDIR of what the test starts.
    """

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="o-", dir="/tmp"))
        self._before = {p.pid for p in processes()}
        self._segments: set[Path] = set()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Footprint:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        shutil.rmtree(self.folder, ignore_errors=True)

    def environment(self, **more: str) -> dict[str, str]:
        """For what the test starts: its temporary files lie in this footprint's folder, Ray's where its sockets fit."""
        return {**os.environ, "TMPDIR": str(self.folder), "RAY_TMPDIR": "/tmp", **more}

    def left(self, *spared: str) -> list[str]:
        """Processes (but those with a `spared` word), shared memory, sockets and replicas' folders that are there."""
        found = [line(p) or str(p) for p in processes() if p.pid not in self._before]
        found = [name for name in found if not any(word in name for word in spared)]
        files = [p for p in self.folder.iterdir() if p.is_socket() or _OURS.match(p.name)]
        return found + [str(p) for p in [*self._segments, *files] if p.exists()]

    def check(self, *spared: str) -> None:
        """Wait until nothing is left: Ray's processes and reapers end a moment after what they belong to."""
        wait_for(lambda: not self.left(*spared), lambda: "\n".join(self.left(*spared)))
        assert self._thread.is_alive(), "nobody noted shared memory"

    def _look(self) -> None:
        """Note shared memory while it is mapped: nobody can tell later whose it was."""
        while not self._done.wait(_LOOK_S):
            inodes = {entry.inode(): Path(entry.path) for entry in os.scandir("/dev/shm")}
            for process in processes():
                if process.pid in self._before:
                    continue
                try:
                    maps = Path(f"/proc/{process.pid}/maps").read_text()
                except OSError:
                    continue
                found = (inodes.get(int(inode)) for inode, _ in _SHARED.findall(maps))
                self._segments |= {
                    path for path in found if path is not None and path.name.startswith(("psm_", "vllm_dist_", "sem."))
                }
