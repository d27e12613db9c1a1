"""Commands of this project as a shell starts them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema

from tests.waiting import HANG_S

ROOT = Path(__file__).resolve().parents[2]


class Command(subprocess.Popen[str]):
    """A command whose output goes to files: nobody reads it while it runs, and a full pipe would stop it."""

    def __init__(self, command: list[str], **options: Any) -> None:
        self._said = [tempfile.TemporaryFile("a") for _ in range(2)]  # noqa: SIM115 - as long as the command
        out, err = self._said
        super().__init__(command, text=True, stdout=out, stderr=err, **options)

    def communicate(self, input: str | None = None, timeout: float | None = None) -> tuple[str, str]:
        self.wait(timeout)
        return self.said()

    def said(self) -> tuple[str, str]:
        """What it said until now, on standard output and on standard error."""
        out, err = (Path(f"/proc/self/fd/{file.fileno()}").read_text(errors="replace") for file in self._said)
        return out, err

    def told(self, words: str) -> bool:
        """Did it say so, anywhere?"""
        return words in "".join(self.said())

    def is_ready(self) -> bool:
        """Has a service said so? It may answer before: an interrupt would then end its start."""
        return self.told("ready after")


def start(*words: str, env: Mapping[str, str], piped: bool = False) -> Any:
    """Start `python WORDS...` in a session of its own.

    Args:
        words: of the command.
        env: its environment.
        piped: for a test that reads while it runs, or goes away.
    """
    command, options = [sys.executable, *words], {"cwd": ROOT, "env": env, "start_new_session": True}
    if piped:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)
    return Command(command, **options)


def finish(process: subprocess.Popen[str]) -> tuple[int, dict, str]:
    """Exit code, the RESULT line's object, and what it said on standard error."""
    out, err = process.communicate(timeout=HANG_S)
    last = out.strip().splitlines()[-1] if out.strip() else ""
    assert last.startswith("RESULT "), out + err
    return process.returncode, json.loads(last.removeprefix("RESULT ")), err


def run(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `python WORDS...`."""
    command, env = [sys.executable, *words], {**os.environ, **variables}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=HANG_S, check=False)


def check_schema(name: str, data: dict) -> None:
    jsonschema.validate(data, json.loads((ROOT / "docs" / "schemas" / f"{name}.json").read_text()))
