"""Commands of this project as a shell starts them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import jsonschema

from tests.waiting import HANG_S

ROOT = Path(__file__).resolve().parents[2]


def start(*words: str, env: Mapping[str, str]) -> subprocess.Popen[str]:
    """Start `python WORDS...` in a session of its own."""
    command = [sys.executable, *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=ROOT, env=env, text=True, start_new_session=True, **pipes)


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
