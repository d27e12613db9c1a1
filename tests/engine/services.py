"""A service of ours as a process, for tests that ask it."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.conftest import ROOT
from tests.engine.test_sharing import end
from tests.footprint import Footprint
from tests.ray.ray_nodes import free_port
from tests.waiting import HANG_S, wait_for


@dataclass
class Service:
    process: subprocess.Popen[str]
    address: str
    output: list[str]
    mine: Footprint
    key: str

    def post(self, path: str, content: bytes | str, key: str | None = None) -> httpx.Response:
        headers = {"Content-Type": "application/json", **self._headers(self.key if key is None else key)}
        return httpx.post(f"{self.address}{path}", content=content, headers=headers, timeout=HANG_S)

    def get(self, path: str) -> httpx.Response:
        return httpx.get(f"{self.address}{path}", headers=self._headers(self.key), timeout=HANG_S)

    def status(self) -> dict:
        return self.get("/status.json").json()

    def metrics(self) -> str:
        (line,) = [line for line in self.output if line.startswith("metrics ")]
        return httpx.get(line.split()[1], timeout=HANG_S).text

    def wait_for(self, condition, what: str | Callable[[], str]) -> None:
        def holds() -> bool:
            assert self.process.poll() is None, "".join(self.output[-40:])
            return condition()

        wait_for(holds, lambda: (what() if callable(what) else what) + "\n" + "".join(self.output[-40:]), 0.25)

    @staticmethod
    def _headers(key: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {key}"} if key else {}


@contextmanager
def served(folder: Path, *words: str, key: str = "") -> Iterator[Service]:
    """`jobs/serve.py WORDS...` until the end of the block; it is ready."""
    command = [
        sys.executable,
        "jobs/serve.py",
        f"hydra.run.dir={folder}",
        f"serve.port={(port := free_port())}",
        *words,
    ]
    mine = Footprint()
    process = subprocess.Popen(
        command, cwd=ROOT, env=mine.environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        process_group=0,
    )  # fmt: skip
    made = Service(process, f"http://127.0.0.1:{port}", [], mine, key)
    reader = threading.Thread(target=lambda: made.output.extend(process.stdout), daemon=True)
    reader.start()
    try:
        with mine:
            made.wait_for(lambda: any("ready after" in line for line in made.output), "not ready")
            yield made
    finally:
        end(process)
        reader.join(timeout=10)
