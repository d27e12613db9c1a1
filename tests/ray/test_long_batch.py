"""A long batch through the real ingress; replicas are killed, and the driver: none lost, none doubled."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator

import httpx
import psutil
import pytest

from tests.footprint import Footprint, processes
from tests.ray.ray_nodes import free_port
from tests.unit.batch_service import line
from tests.unit.commands import finish, start
from tests.waiting import wait_for

ROWS = int(os.environ.get("ORCHESTRATOR_TEST_ROWS", "20000"))
KILL_EACH_S = 30.0
pytestmark = pytest.mark.usefixtures("no_ray")


@pytest.fixture
def job(mine: Footprint):
    env = mine.environment(ORCHESTRATOR_HOME=str(mine.folder), RAY_TMPDIR=os.environ["RAY_TMPDIR"])

    def begin(name: str, *words: str) -> subprocess.Popen[str]:
        return start(f"jobs/{name}.py", *words, f"hydra.run.dir={mine.folder}/{name}-{time.monotonic_ns()}", env=env)

    return begin


@pytest.fixture
def service(mine: Footprint, job) -> Iterator[str]:
    """Two fake replicas; each prompt that they are asked is a line of `asked`."""
    port = free_port()
    process = job(
        "serve", "engine=fake", "model=tiny_llama", "cluster.num_cpus=2", f"serve.port={port}", "serve.drain_s=2",
        "serve.min_replicas=2", "serve.max_replicas=2", "serve.health_period_s=2",
        f"+engine.extra.fake_log={mine.folder}/asked",
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}/v1"

    def answers() -> bool:
        assert process.poll() is None, process.communicate()
        body = {"model": "tiny_llama", "prompt": "first", "max_tokens": 1}
        try:
            return httpx.post(f"{url}/completions", json=body, timeout=60.0).is_success
        except httpx.HTTPError:
            return False

    try:
        wait_for(answers, pause_s=0.5)
        yield url
    finally:
        os.killpg(process.pid, signal.SIGINT)
        finish(process)


def replicas() -> list[psutil.Process]:
    return [p for p in processes("ServeReplica") if "model:tiny_llama" in " ".join(p.cmdline())]


def cpu_s(name: str) -> float:
    """CPU time of the service's processes of a kind, so far."""
    return sum(sum(p.cpu_times()[:2]) for p in processes(name))


FRONT = {"ingress": "ServeReplica:orchestrator:ingress", "proxy": "ProxyActor"}


@pytest.mark.timeout(7200)
def test_none_is_lost_none_is_doubled_and_few_are_asked_twice(service: str, job, mine: Footprint) -> None:
    (mine.folder / "in.jsonl").write_text("".join(line(f"r{i}", max_tokens=2) for i in range(ROWS)))
    answers = mine.folder / "in.answers.jsonl"
    words = [f"batch.url={service}", f"batch.input={mine.folder}/in.jsonl", "batch.model=tiny_llama"]

    def done() -> int:
        return answers.read_bytes().count(b"\n") if answers.exists() else 0

    memory: list[int] = []
    before = {part: cpu_s(name) for part, name in FRONT.items()}
    began = last = time.monotonic()
    driver, killed, replaced = job("batch", *words), 0, False
    while driver.poll() is None:
        time.sleep(0.5)
        if not replaced and done() > ROWS // 2:
            driver.kill()
            driver.communicate()
            driver, replaced = job("batch", *words), True
        elif driver.poll() is None and done() > 100 and (used := psutil.Process(driver.pid).memory_info().rss):
            memory.append(used >> 20)  # one that has just ended has none
        if time.monotonic() - last > KILL_EACH_S and (found := replicas()):
            found[0].kill()
            killed, last = killed + 1, time.monotonic()
    code, result, err = finish(driver)
    seconds = time.monotonic() - began
    front = {part: f"{1000 * (cpu_s(name) - before[part]) / ROWS:.1f} ms" for part, name in FRONT.items()}
    assert code == 0, (result, err[-3000:])
    assert (result["requests"], result["answered"], replaced) == (ROWS, ROWS, True)
    found = [json.loads(text)["custom_id"] for text in answers.read_text().splitlines()]
    assert sorted(found) == sorted(f"r{i}" for i in range(ROWS))
    asked = Counter((mine.folder / "asked").read_text().splitlines())
    del asked["first"]
    twice = sum(asked.values()) - ROWS
    assert set(asked) == {f"r{i}" for i in range(ROWS)}
    assert twice <= 0.05 * ROWS
    half = memory[len(memory) // 2 :]
    print(
        f"{ROWS} rows in {seconds:.0f} s, {killed} replicas killed, {twice} asked twice, driver "
        f"{min(memory)} to {max(memory)} MiB, in the second half from {half[0]} to {half[-1]}; CPU for a row: {front}"
    )
    assert half[-1] - half[len(half) // 4] < 32
