"""Jobs in processes of their own: what one of them breaks, a deadline or a kill, leaves the others."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator import paths
from orchestrator.config import SweepConfig, sources
from orchestrator.errors import one_line

RECORD, RESULT = "cell.json", "result.json"
_SAID = (RECORD, RESULT, "bench.json", "warm.json")  # by earlier attempts
_STOP_S = 30.0  # after Ctrl-C, or a deadline


def command(job: str) -> list[str]:
    """What runs a cell's job; its flags and overrides follow."""
    return [sys.executable, "-m", "orchestrator", job]


@dataclass(frozen=True)
class Cell:
    """One run of a job.

    Attributes:
        job: its name.
        overrides: Hydra's.
        folder: where its outputs go, and its record.
        flags: where its configuration is found; see `sources.flags`.
        env: None: this process's.
    """

    job: str
    overrides: Sequence[str]
    folder: Path
    flags: Sequence[str] = ()
    env: Mapping[str, str] | None = field(default=None, repr=False)

    @property
    def shown(self) -> list[str]:
        """The overrides as others may see them."""
        return [paths.shown(override) for override in self.overrides]

    def finished(self) -> dict[str, Any] | None:
        """The record of an earlier run that was well, and the same."""
        try:
            record = json.loads((self.folder / RECORD).read_text())
        except (OSError, ValueError):
            return None
        same = record.get("overrides") == self.shown and record.get("flags", []) == list(self.flags)
        return record if same and record.get("code") == 0 else None


class Processes:
    """Runs cells, and stops them."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[str]] = set()
        self._stopped = False

    def run(self, cell: Cell, settings: SweepConfig) -> dict[str, Any]:
        """Run one cell, or find that it has run; whatever goes wrong is its outcome.

        Args:
            cell: what to run.
            settings: retries, deadline, resume.

        Returns:
            `result` (what the job said in its RESULT line), `code` (0: all well), `attempts`, `resumed`.
        """
        if settings.resume and (done := cell.finished()) is not None:
            return {**done, "resumed": True}
        found: dict[str, Any] = {}
        for attempt in range(1, settings.retries + 2):
            try:
                code, result = self._once(cell, settings.deadline_s)
            except Exception as error:
                code, result = 1, {"ok": False, "error": one_line(error)}
            found = {"overrides": cell.shown, "flags": list(cell.flags)}
            found |= {"attempts": attempt, "code": code, "result": result, "resumed": False}
            if code in (0, 2) or self._stopped:  # 2: wrong configuration stays wrong
                break
        with suppress(OSError):  # without a record it is run again
            cell.folder.mkdir(parents=True, exist_ok=True)
            (cell.folder / RECORD).write_text(json.dumps({"schema": "orchestrator.cell/1", **found}, indent=2))
        return found

    def stop(self) -> None:
        """Interrupt the cells that other threads run, and kill what does not end; no attempt begins after it."""
        self._stopped = True
        for signum in (signal.SIGINT, signal.SIGKILL):
            for process in list(self._running):
                _signal(process, signum)
            deadline = time.monotonic() + _STOP_S
            while self._running and time.monotonic() < deadline:
                time.sleep(0.05)

    def _once(self, cell: Cell, deadline_s: float | None) -> tuple[int, dict[str, Any]]:
        for name in _SAID:
            (cell.folder / name).unlink(missing_ok=True)  # an attempt has one outcome, its own
        words = [*command(cell.job), *cell.flags, *cell.overrides, f"hydra.run.dir={sources.quoted(str(cell.folder))}"]
        text: dict[str, Any] = {"text": True, "encoding": "utf-8", "errors": "replace"}
        process = subprocess.Popen(words, stdout=subprocess.PIPE, process_group=0, env=cell.env, **text)
        self._running.add(process)
        late = False
        try:
            if self._stopped:  # while it began
                _signal(process, signal.SIGINT)
            out, _ = process.communicate(timeout=deadline_s)
        except subprocess.TimeoutExpired:
            late = True
            out = _ended(process)
        except BaseException:
            _ended(process)
            raise
        finally:
            self._running.discard(process)
        code, result = process.returncode, _said(out)
        if late:
            return 1, {"ok": False, "error": f"not done within sweep.deadline_s={deadline_s:g}"}
        if code < 0:  # as a shell has it
            return 128 - code, {"ok": False, "error": f"its process was killed by {signal.Signals(-code).name}"}
        if result is None:
            return code or 1, {"ok": False, "error": f"it ended with exit code {code} and said nothing"}
        if code and result["ok"]:
            result = {**result, "ok": False, "error": f"it ended with exit code {code} after it was done"}
        return code or int(not result["ok"]), result


def environment() -> dict[str, str]:
    """This process's environment as it is now, for a cell that another thread starts later."""
    return dict(os.environ)


def _said(out: str) -> dict[str, Any] | None:
    """A job's RESULT line; None where there is none, or it is torn."""
    lines = [line.removeprefix("RESULT ") for line in out.splitlines() if line.startswith("RESULT ")]
    with suppress(ValueError):
        found = json.loads(lines[-1]) if lines else None
        return found if isinstance(found, dict) and "ok" in found else None
    return None


def _signal(process: subprocess.Popen[str], signum: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signum)


def _ended(process: subprocess.Popen[str]) -> str:
    """Interrupt a job, and kill its processes if it does not end; returns what it had printed."""
    for signum in (signal.SIGINT, signal.SIGKILL):
        _signal(process, signum)
        with suppress(subprocess.TimeoutExpired):
            return process.communicate(timeout=_STOP_S)[0]
    return ""
