"""Ask for starts of a model; tests/engine/starts.py makes them, each request in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE
from typing import Any

from tests.waiting import HANG_S

ROOT = Path(__file__).resolve().parents[2]


class Server:
    """A process that has imported vLLM, and forks for each request."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.engine.starts"]
        self._process = subprocess.Popen(command, cwd=ROOT, stdin=PIPE, stdout=PIPE, text=True, process_group=0)

    def ask(self, model: str, *wanted: dict[str, Any], **environment: str) -> list[dict[str, Any]]:
        """What each of the wanted starts found; see `starts.start`."""
        request = {"model": model, "environment": environment, "starts": wanted}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        said: list[str] = []
        for line in self._process.stdout:
            said.append(line)
            if line.startswith("ENDED "):
                break
        found = [line for line in said if line.startswith("STARTS ")]
        assert found, "".join(said[-40:])
        return json.loads(found[0].removeprefix("STARTS "))

    def close(self) -> None:
        """End it; one that hangs is killed."""
        self._process.stdin.close()
        try:
            self._process.wait(timeout=HANG_S)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
