"""A sweep's cells, each in a process of its own: what one of them breaks, a deadline or a kill, leaves the others."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from orchestrator.config import AppConfig, ClusterKind, Device, SweepConfig
from orchestrator.errors import ConfigError

RECORD = "cell.json"
_STOP_S = 30.0  # after Ctrl-C, or a deadline
_running: set[subprocess.Popen[str]] = set()


def command(job: str) -> list[str]:
    """What runs a cell's job; its overrides follow."""
    return [sys.executable, "-m", "orchestrator", job]


def run_cell(job: str, overrides: Sequence[str], folder: Path, settings: SweepConfig) -> dict[str, Any]:
    """Run one cell, or find that it has run.

    Args:
        job: its name.
        overrides: Hydra's, for this cell.
        folder: where its outputs go, and its record.
        settings: retries, deadline, resume.

    Returns:
        `result` (what the job said in its RESULT line), `code` (0: all well), `attempts`, `resumed`.
    """
    if settings.resume and (done := _finished(folder, overrides)) is not None:
        return {**done, "resumed": True}
    found: dict[str, Any] = {}
    for attempt in range(1, settings.retries + 2):
        code, result = _once(job, overrides, folder, settings.deadline_s)
        found = {"overrides": list(overrides), "attempts": attempt, "code": code, "result": result, "resumed": False}
        if code in (0, 2):  # 2: wrong configuration stays wrong
            break
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RECORD).write_text(json.dumps({"schema": "orchestrator.cell/1", **found}, indent=2))
    return found


def check_parallel(job: str, app: AppConfig) -> None:
    """May cells of this configuration run side by side?

    Raises:
        ConfigError: they would disturb each other, or what is measured.
    """
    wanted, where = app.sweep.parallel, "sweep.parallel"
    if wanted == 1:
        return
    if job == "bench":
        raise ConfigError("Benchmarks side by side measure each other.", where=where, hint="Set sweep.parallel=1.")
    if app.sweep.objective:
        raise ConfigError("A sweeper that optimises waits for each cell.", where=where, hint="Set sweep.parallel=1.")
    if app.cluster.kind is ClusterKind.existing:
        return  # its placement groups keep replicas apart
    if app.engine.device is Device.gpu:
        raise ConfigError("Cells on one machine would share its GPUs.", where=where, hint="Set cluster=existing.")
    cores = len(os.sched_getaffinity(0))
    if wanted > cores:
        raise ConfigError(f"sweep.parallel={wanted} cells do not each find a core: there are {cores}.", where=where)


def pool(parallel: int, apart: bool) -> ThreadPoolExecutor:
    """Threads for cells; with `apart` each thread, and so what it starts, has cores of its own."""
    cores = sorted(os.sched_getaffinity(0))
    shares: SimpleQueue[list[int]] = SimpleQueue()
    for i in range(parallel):
        shares.put(cores[i * len(cores) // parallel : (i + 1) * len(cores) // parallel])
    begin = (lambda: os.sched_setaffinity(0, shares.get())) if apart else None
    return ThreadPoolExecutor(parallel, thread_name_prefix="cell", initializer=begin)


def stop() -> None:
    """Interrupt the cells that run in a pool's threads; those threads then end by themselves."""
    for process in list(_running):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGINT)


def value(result: Mapping[str, Any], objective: str) -> float:
    """The figure that a sweeper asks for; not a number where the cell failed.

    Raises:
        ConfigError: a cell that ran well has no such figure.
    """
    found: Any = result
    for part in objective.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    if isinstance(found, (int, float)) and result["ok"]:
        return float(found)
    if result["ok"]:
        raise ConfigError(f"RESULT has no figure {objective!r}.", where="sweep.objective")
    return math.nan


def _finished(folder: Path, overrides: Sequence[str]) -> dict[str, Any] | None:
    """The record of a cell that has run with these overrides, and well."""
    try:
        record = json.loads((folder / RECORD).read_text())
    except (OSError, ValueError):
        return None
    same = record.get("overrides") == list(overrides) and record.get("code") == 0
    return record if same else None


def _once(job: str, overrides: Sequence[str], folder: Path, deadline_s: float | None) -> tuple[int, dict[str, Any]]:
    words = [*command(job), *overrides, f"hydra.run.dir={folder}"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, process_group=0)
    _running.add(process)
    late = False
    try:
        out, _ = process.communicate(timeout=deadline_s)
    except subprocess.TimeoutExpired:
        late = True
        out = _stopped(process)
    except BaseException:
        _stopped(process)
        raise
    finally:
        _running.discard(process)
    said = [line for line in out.splitlines() if line.startswith("RESULT ")]
    result: dict[str, Any] = json.loads(said[-1].removeprefix("RESULT ")) if said else {"ok": False}
    if late:
        result = {"ok": False, "error": f"not done within sweep.deadline_s={deadline_s:g}"}
    elif process.returncode < 0:
        name = signal.Signals(-process.returncode).name
        result = {"ok": False, "error": f"its process was killed by {name}"}
    elif not said:
        result["error"] = f"it ended with exit code {process.returncode} and said nothing"
    code = process.returncode if process.returncode >= 0 else 128 - process.returncode  # as a shell has it
    return (1 if late else code), result


def _stopped(process: subprocess.Popen[str]) -> str:
    """Interrupt a job, and kill its processes if it does not end; returns what it had printed."""
    for signum in (signal.SIGINT, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signum)
        with suppress(subprocess.TimeoutExpired):
            return process.communicate(timeout=_STOP_S)[0]
    return ""
