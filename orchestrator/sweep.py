"""A sweep's cells, each in a process of its own: what one of them breaks, a deadline or a kill, leaves the others."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from orchestrator.config import SweepConfig

RECORD = "cell.json"
_STOP_S = 30.0  # after Ctrl-C, or a deadline


def run_cell(script: Path, overrides: Sequence[str], folder: Path, settings: SweepConfig) -> dict[str, Any]:
    """Run one cell, or find that it has run.

    Args:
        script: the job.
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
        code, result = _once(script, overrides, folder, settings.deadline_s)
        found = {"overrides": list(overrides), "attempts": attempt, "code": code, "result": result, "resumed": False}
        if code in (0, 2):  # 2: wrong configuration stays wrong
            break
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RECORD).write_text(json.dumps({"schema": "orchestrator.cell/1", **found}, indent=2))
    return found


def _finished(folder: Path, overrides: Sequence[str]) -> dict[str, Any] | None:
    """The record of a cell that has run with these overrides, and well."""
    try:
        record = json.loads((folder / RECORD).read_text())
    except (OSError, ValueError):
        return None
    same = record.get("overrides") == list(overrides) and record.get("code") == 0
    return record if same else None


def _once(script: Path, overrides: Sequence[str], folder: Path, deadline_s: float | None) -> tuple[int, dict[str, Any]]:
    command = [sys.executable, str(script), *overrides, f"hydra.run.dir={folder}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, process_group=0)
    late = False
    try:
        out, _ = process.communicate(timeout=deadline_s)
    except subprocess.TimeoutExpired:
        late = True
        out = _stopped(process)
    except BaseException:
        _stopped(process)
        raise
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
