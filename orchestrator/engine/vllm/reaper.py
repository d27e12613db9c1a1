"""No engine process outlives its replica, and no folder of its.

Every process of a replica inherits a marker in its environment; where it was forked, and has no environment of its own
that others can read, it is in the replica's process group. `kill_marked` ends them all, and a small reaper process does
so when the replica itself is killed, which is when nobody else is left to do it: vLLM's EngineCore does not notice that
its parent is gone. The reaper runs this file alone, and needs nothing but Python: what it cleans up after may have
taken the environment with it.

vLLM leaves shared-memory segments behind, even after a clean shutdown, and Python leaves a killed process's semaphores:
whoever ends a replica's processes also removes those that these had mapped. Python's resource trackers are spared: they
end by themselves.
"""

from __future__ import annotations

import io
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

MARKER = "ORCHESTRATOR_REPLICA_ID"
OWN = "orchestrator-"  # how a parent folder's name begins that goes with the last folder in it
_SHARED = "/dev/shm"  # noqa: S108
_SEGMENT = re.compile(r"(/dev/shm/(?:psm|vllm_dist)_\S+)")
_SEMAPHORE = re.compile(r"(\d+) +/dev/shm/sem\.")  # its inode; its maker has it under another, deleted name
_TRACKER = b"multiprocessing.resource_tracker import main"
# A grandchild that keeps standard error and input; a shell gives what runs in the background no input of itself
_DETACH = 'exec 3<&0; "$@" >&2 <&3 3<&- & echo $!'
_STILL_S = 1.0  # at most, until processes have stopped: one that waits for a disk does not
_LOOK_S = 60.0  # at most, between two looks at what is mapped


@dataclass(frozen=True)
class Process:
    """A process on this machine: its id comes again, with another start (clock ticks since boot)."""

    pid: int
    start: str

    @staticmethod
    def of(pid: int) -> Process:
        """The one that has this id now; one that never runs if there is none."""
        return Process(pid, _stat(pid)[2])

    def runs(self) -> bool:
        """It has not ended, and is no zombie."""
        state, _, start = _stat(self.pid)
        return state not in ("", "Z", "X") and start == self.start

    def tell(self, number: signal.Signals) -> None:
        """Send it a signal."""
        if self.runs():
            with suppress(OSError):
                os.kill(self.pid, number)


@dataclass(frozen=True)
class Reaper:
    """The process that cleans up once its caller is gone."""

    process: Process
    notes: io.FileIO

    def note(self, segments: set[Path]) -> None:
        """Let it remove these as well. It looks rarely, and an engine's processes may end before their replica."""
        with suppress(OSError):
            self.notes.write(b"".join(os.fsencode(segment) + b"\n" for segment in segments))

    def over(self) -> None:
        """The replica has stopped: the reaper removes what is left, and ends."""
        self.process.tell(signal.SIGUSR1)
        self.notes.close()


def new_marker(replica: str, *, forked: bool) -> str:
    """A marker for what this process will start; `forked`: those will be forks in the process group that it leads."""
    return f"{replica}-{os.getpid()}-{time.time_ns()}" + (f"@{os.getpgrp()}" if forked else "")


def marked(marker: str, *, spare: int = 0) -> list[Process]:
    """All processes on this machine that carry the marker, without the caller, `spare`, and resource trackers."""
    found: list[Process] = []
    if not marker:
        return found
    group, carried = marker.partition("@")[2] or "-1", f"{MARKER}={marker}".encode()
    for pid in _all_pids():
        state, its_group, start = _stat(pid)
        if pid in (os.getpid(), spare) or state in ("", "Z", "X"):
            continue
        ours = its_group == group or carried in _read(pid, "environ").split(b"\0")
        if ours and _TRACKER not in _read(pid, "cmdline"):
            found.append(Process(pid, start))
    return found


def shared_segments(marker: str) -> set[Path]:
    """vLLM's shared-memory segments that marked processes have mapped."""
    return {path for process in marked(marker) for path in _mapped(process.pid)}


def remove_segments(segments: set[Path]) -> set[Path]:
    """Remove segments, except those that a process still has mapped, and return these."""
    used = {path for pid in _all_pids() for path in _mapped(pid)} if segments else set()
    for segment in segments - used:
        segment.unlink(missing_ok=True)
    return segments & used


def kill_marked(marker: str, *, grace_s: float = 2.0, spare: int = 0) -> list[int]:
    """End every marked process: SIGTERM, `grace_s` seconds, SIGKILL; then their segments. Returns their pids.

    All of them stand still first. Else one could start another process, or make a segment, after we had looked.
    """
    victims = _stopped(marker, spare)
    segments = shared_segments(marker)
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in victims:
            process.tell(number)
            process.tell(signal.SIGCONT)
        deadline = time.monotonic() + grace_s
        while any(process.runs() for process in victims) and time.monotonic() < deadline:
            time.sleep(0.02)
            segments |= {path for process in victims for path in _mapped(process.pid)}
        for process in victims:  # children of the caller's that have ended would stay zombies
            with suppress(OSError):
                os.waitpid(process.pid, os.WNOHANG)
    remove_segments(segments)
    return [process.pid for process in victims]


def _stopped(marker: str, spare: int) -> list[Process]:
    found: list[Process] = []
    while new := [process for process in marked(marker, spare=spare) if process not in found]:
        for process in new:
            process.tell(signal.SIGSTOP)
        deadline = time.monotonic() + _STILL_S
        while any(p.runs() and _stat(p.pid)[0] not in ("T", "t") for p in new) and time.monotonic() < deadline:
            time.sleep(0.001)
        found += new
    return found


def start_reaper(marker: str = "", remove: str = "") -> Reaper:
    """Start the process that, once the caller is gone, kills the marked ones and removes a folder; "" for none.

    It is no child of the caller's: a Ray worker kills its children when it exits. `over` ends it earlier.
    """
    environment = {key: value for key, value in os.environ.items() if key not in (MARKER, "LD_PRELOAD")}
    me = Process.of(os.getpid())
    command = [sys.executable, "-I", "-S", __file__, str(me.pid), me.start, marker, remove]
    shell = ["/bin/sh", "-c", _DETACH, "sh", *command]
    noted, notes = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        pid = subprocess.check_output(shell, env=environment, start_new_session=True, cwd="/", stdin=noted)
    finally:
        os.close(noted)
    return Reaper(Process.of(int(pid)), io.FileIO(notes, "w"))


def _reap(parent: Process, marker: str, remove: str) -> None:
    """Wait for the parent's end, then clean up. Segments are noted on the way: a Ctrl-C ends their owners first."""
    told, tell = os.pipe2(os.O_NONBLOCK)
    signal.set_wakeup_fd(tell)
    signal.signal(signal.SIGUSR1, lambda *_: None)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):  # not before it is done
        signal.signal(number, signal.SIG_IGN)
    end = select.poll()
    end.register(told, select.POLLIN)
    with suppress(OSError):
        end.register(os.pidfd_open(parent.pid), select.POLLIN)
    segments: set[Path] = set()
    pause = 0.5
    while parent.runs():
        segments |= shared_segments(marker)
        pause = min(2 * pause, _LOOK_S)  # they are made at the engine's start
        if end.poll(1000 * pause):
            break
    while kill_marked(marker, grace_s=0.5, spare=parent.pid):  # again, for what was being started meanwhile
        time.sleep(0.2)
    remove_segments(segments | _noted())
    if remove:
        remove_folder(Path(remove))


def _noted() -> set[Path]:
    """What the caller has told, by its end of a pipe."""
    words = b""
    with suppress(BlockingIOError):  # forks of the caller's may still have that end
        while part := os.read(sys.stdin.fileno(), 1 << 16):
            words += part
    return {Path(os.fsdecode(name)) for name in words.splitlines()}


def remove_folder(folder: Path) -> None:
    """Remove a folder, and the one that it is in if that is ours and nothing else is in it."""
    for _ in range(50):  # a process that is ending may still write
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            break
        time.sleep(0.1)
    if folder.parent.name.startswith(OWN):
        with suppress(OSError):
            folder.parent.rmdir()


def _all_pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _stat(pid: int) -> tuple[str, str, str]:
    """State, process group and start; each "" if there is no such process."""
    words = _read(pid, "stat").decode(errors="replace").rpartition(")")[2].split()
    return (words[0], words[2], words[19]) if len(words) > 19 else ("", "", "")


def _read(pid: int, name: str) -> bytes:
    """A file about a process; empty where it is gone, or not ours to look at."""
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def _mapped(pid: int) -> set[Path]:
    """With those that it has made, and not mapped yet."""
    maps = _read(pid, "maps").decode(errors="replace")
    with suppress(OSError):
        for fd in os.scandir(f"/proc/{pid}/fd"):
            with suppress(OSError):  # closed meanwhile
                maps += f"\n{os.readlink(fd.path)}"
    found = {Path(name) for name in _SEGMENT.findall(maps)}
    if inodes := set(map(int, _SEMAPHORE.findall(maps))):
        found |= {Path(entry) for entry in os.scandir(_SHARED) if entry.inode() in inodes}
    return found


if __name__ == "__main__":
    _reap(Process(int(sys.argv[1]), sys.argv[2]), sys.argv[3], sys.argv[4])
