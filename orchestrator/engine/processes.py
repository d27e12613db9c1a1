"""No engine process outlives its replica.

Every process of a replica inherits a marker in its environment. `kill_marked` ends them all, and a small reaper
process does so when the replica itself is killed, which is when nobody else is left to do it: vLLM's EngineCore does
not notice that its parent is gone.

Python's resource trackers are spared: they end by themselves and remove the shared memory of the dead.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

import psutil

MARKER = "ORCHESTRATOR_REPLICA_ID"


def marked(marker: str) -> list[psutil.Process]:
    """All processes on this machine that carry the marker, without the caller and resource trackers."""
    found = []
    for process in psutil.process_iter():
        if process.pid == os.getpid():
            continue
        try:
            if process.environ().get(MARKER) == marker and not _is_tracker(process):
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def kill_marked(marker: str, *, spare: frozenset[int] = frozenset(), grace_s: float = 2.0) -> list[int]:
    """End every marked process but `spare`: SIGTERM, `grace_s` seconds, SIGKILL. Returns their pids."""
    victims = [process for process in marked(marker) if process.pid not in spare]
    for process in victims:
        _quietly(process.terminate)
    _, alive = psutil.wait_procs(victims, timeout=grace_s)
    for process in alive:
        _quietly(process.kill)
    psutil.wait_procs(alive, timeout=grace_s)
    return [process.pid for process in victims]


def start_reaper(marker: str) -> subprocess.Popen[bytes]:
    """Start the process that kills the marked ones once the caller is gone."""
    environment = {key: value for key, value in os.environ.items() if key not in (MARKER, "LD_PRELOAD")}
    command = [sys.executable, "-m", "orchestrator.engine.processes", str(os.getpid()), marker]
    return subprocess.Popen(command, env=environment, start_new_session=True, stdin=subprocess.DEVNULL)


def _reap(parent: int, marker: str) -> None:
    try:
        process = psutil.Process(parent)
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.5)
    except psutil.NoSuchProcess:
        pass
    while kill_marked(marker, grace_s=0.5):  # again, for what was being started meanwhile
        time.sleep(0.2)


def _is_tracker(process: psutil.Process) -> bool:
    return any("resource_tracker" in part for part in process.cmdline())


def _quietly(action: object) -> None:
    try:
        action()  # type: ignore[operator]
    except psutil.Error:
        return


if __name__ == "__main__":
    _reap(int(sys.argv[1]), sys.argv[2])
