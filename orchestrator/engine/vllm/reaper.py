"""No engine process outlives its replica.

Every process of a replica inherits a marker in its environment; where it was forked, and has no environment of its own
that others can read, it is in the replica's process group. `kill_marked` ends them all, and a small reaper process does
so when the replica itself is killed, which is when nobody else is left to do it: vLLM's EngineCore does not notice that
its parent is gone.

vLLM leaves shared-memory segments behind, even after a clean shutdown, and Python leaves a killed process's semaphores:
whoever ends a replica's processes also removes those that these had mapped. Python's resource trackers are spared: they
end by themselves.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil

MARKER = "ORCHESTRATOR_REPLICA_ID"
_SHARED = "/dev/shm"  # noqa: S108
_SEGMENT = re.compile(r"(/dev/shm/(?:psm|vllm_dist)_\S+)")
_SEMAPHORE = re.compile(r"(\d+) +/dev/shm/sem\.")  # its inode; its maker has it under another, deleted name
# A grandchild, with standard error as its only stream
_DETACH = '"$@" >&2 </dev/null & echo $!'


def new_marker(replica: str, *, forked: bool) -> str:
    """A marker for what this process will start; `forked`: those will be forks in the process group that it leads."""
    return f"{replica}-{os.getpid()}-{time.time_ns()}" + (f"@{os.getpgrp()}" if forked else "")


def marked(marker: str) -> list[psutil.Process]:
    """All processes on this machine that carry the marker, without the caller and resource trackers."""
    found = []
    group = int(marker.partition("@")[2] or -1)
    for process in psutil.process_iter():
        if process.pid == os.getpid():
            continue
        try:
            ours = os.getpgid(process.pid) == group or process.environ().get(MARKER) == marker
            if ours and not _is_tracker(process):
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def shared_segments(marker: str) -> set[Path]:
    """vLLM's shared-memory segments that marked processes have mapped."""
    found = set()
    for process in marked(marker):
        found |= _mapped(process)
    return found


def remove_segments(segments: set[Path]) -> set[Path]:
    """Remove segments, except those that a process still has mapped, and return these."""
    used = set()
    for process in psutil.process_iter():
        used |= _mapped(process)
    for segment in segments - used:
        segment.unlink(missing_ok=True)
    return segments & used


def kill_marked(marker: str, *, grace_s: float = 2.0) -> list[int]:
    """End every marked process: SIGTERM, `grace_s` seconds, SIGKILL; then their segments. Returns their pids."""
    segments = shared_segments(marker)
    victims = marked(marker)
    for process in victims:
        with suppress(psutil.Error):
            process.terminate()
    _, alive = psutil.wait_procs(victims, timeout=grace_s)
    for process in alive:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(alive, timeout=grace_s)
    remove_segments(segments)
    return [process.pid for process in victims]


def start_reaper(marker: str, remove: str = "") -> psutil.Process:
    """Start the process that, once the caller is gone, kills the marked ones and removes a folder, if one is named.

    It is no child of the caller's: a Ray worker kills its children when it exits.
    """
    environment = {key: value for key, value in os.environ.items() if key not in (MARKER, "LD_PRELOAD")}
    command = [sys.executable, "-m", "orchestrator.engine.vllm.reaper", str(os.getpid()), marker, remove]
    shell = ["/bin/sh", "-c", _DETACH, "sh", *command]
    return psutil.Process(int(subprocess.check_output(shell, env=environment, start_new_session=True)))


def _reap(parent: int, marker: str, remove: str) -> None:
    """Wait for the parent's end, then clean up. Segments are noted on the way: a Ctrl-C ends their owners first."""
    segments: set[Path] = set()
    pause, next_look = 0.5, time.monotonic()
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(parent)
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            if time.monotonic() >= next_look:
                segments |= shared_segments(marker)
                pause = min(2 * pause, 60.0)  # they are made at the engine's start
                next_look = time.monotonic() + pause
            time.sleep(0.25)
    while kill_marked(marker, grace_s=0.5):  # again, for what was being started meanwhile
        time.sleep(0.2)
    remove_segments(segments)
    if remove:
        shutil.rmtree(remove, ignore_errors=True)


def _mapped(process: psutil.Process) -> set[Path]:
    try:
        maps = Path(f"/proc/{process.pid}/maps").read_text()
    except OSError:  # it is gone, or not ours to look at
        return set()
    found = {Path(name) for name in _SEGMENT.findall(maps)}
    if inodes := set(map(int, _SEMAPHORE.findall(maps))):
        found |= {Path(entry) for entry in os.scandir(_SHARED) if entry.inode() in inodes}
    return found


def _is_tracker(process: psutil.Process) -> bool:
    return any("multiprocessing.resource_tracker import main" in part for part in process.cmdline())


if __name__ == "__main__":
    _reap(int(sys.argv[1]), sys.argv[2], sys.argv[3])
