"""How a service ends while a request is at work: it waits for it, and a second Ctrl-C waits for nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Iterator

import httpx
import pytest

from tests.footprint import Footprint
from tests.ray.ray_nodes import free_port
from tests.unit.commands import finish, start
from tests.waiting import HANG_S, wait_for

pytestmark = [pytest.mark.usefixtures("no_ray"), pytest.mark.timeout(3 * HANG_S)]
BODY = {"model": "tiny_llama", "prompt": "Hello", "max_tokens": 2}


class Asked(threading.Thread):
    """A request, and the code of its answer; 0: none came."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self._url, self.code = url, 0
        self.start()

    def run(self) -> None:
        try:
            self.code = httpx.post(f"{self._url}/v1/completions", json=BODY, timeout=HANG_S).status_code
        except httpx.HTTPError:
            self.code = 0


@pytest.fixture
def service(mine: Footprint, request: pytest.FixtureRequest) -> Iterator[tuple[subprocess.Popen[str], Asked]]:
    """A service in which a request is at work, for so many seconds."""
    port, log = free_port(), mine.folder / "asked"
    words = ["engine=fake", "model=tiny_llama", "cluster.num_cpus=2", f"serve.port={port}", "serve.drain_s=3600"]
    words += [f"+engine.extra.fake_log={log}", f"+engine.extra.fake_answer_s={request.param}"]
    process = start("jobs/serve.py", *words, f"hydra.run.dir={mine.folder}/out", env=mine.environment())
    try:
        wait_for(lambda: process.is_ready() or process.poll() is not None, pause_s=0.5)
        assert process.poll() is None, process.communicate()
        asked = Asked(f"http://127.0.0.1:{port}")
        wait_for(lambda: log.exists() and log.read_text() == "Hello\n")
        yield process, asked
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.parametrize("service", [10], indirect=True)
def test_ctrl_c_waits_for_what_was_accepted(service: tuple[subprocess.Popen[str], Asked], mine: Footprint) -> None:
    process, asked = service
    os.kill(process.pid, signal.SIGINT)
    code, result, err = finish(process)
    asked.join(timeout=HANG_S)
    assert (code, result["ok"], asked.code) == (0, True, 200), err
    mine.check()


@pytest.mark.parametrize("service", [3600], indirect=True)
def test_a_second_ctrl_c_ends_at_once(service: tuple[subprocess.Popen[str], Asked], mine: Footprint) -> None:
    process, asked = service
    os.kill(process.pid, signal.SIGINT)
    wait_for(lambda: process.told("draining"))
    os.kill(process.pid, signal.SIGINT)
    code, result, err = finish(process)
    asked.join(timeout=HANG_S)
    assert (code, result["ok"], result["error"]) == (130, False, "interrupted"), err
    assert asked.code != 200
    mine.check()
