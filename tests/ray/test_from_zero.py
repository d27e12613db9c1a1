"""A service at zero, and a thousand clients at once: each is answered, or told when to come back."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from tests.footprint import Footprint
from tests.ray.ray_nodes import free_port
from tests.unit.commands import finish, start
from tests.waiting import HANG_S, wait_for

pytestmark = [pytest.mark.usefixtures("no_ray"), pytest.mark.timeout(3 * HANG_S)]
BODY = {"model": "tiny_llama", "prompt": "Hello", "max_tokens": 2}
CLIENTS, HELD = 1000, 200


@contextmanager
def service_at_zero(mine: Footprint, *words: str) -> Iterator[str]:
    """Its address; it ends well, and leaves nothing."""
    url = f"http://127.0.0.1:{(port := free_port())}"
    given = ["engine=fake", "model=tiny_llama", "serve.min_replicas=0", "serve.start_s=30", "cluster.num_cpus=2"]
    given += [f"serve.port={port}", f"hydra.run.dir={mine.folder}/out", *words]
    service = start("jobs/serve.py", *given, env=mine.environment())
    try:
        wait_for(lambda: (service.is_ready() and at_zero(url)) or service.poll() is not None, pause_s=0.5)
        assert service.poll() is None, service.communicate()
        yield url
    finally:
        os.killpg(service.pid, signal.SIGINT)
        code, _, err = finish(service)
    assert code == 0, err
    mine.check()


def test_a_thousand_clients_at_zero(mine: Footprint) -> None:
    with service_at_zero(mine, f"serve.max_held={HELD}") as url:
        found = all_at_once(url)
        refused = sorted(seconds for code, _, seconds in found if code == 429)
        print(f"{len(refused)} refused, within {refused[0]:.2f} to {refused[-1]:.2f} s")
        codes = Counter(code for code, _, _ in found)
        assert set(codes) == {200, 429}, codes
        assert codes[200] >= HELD
        assert all(1 <= int(again) <= 30 for code, again, _ in found if code == 429)
        # there is a replica now, and everybody gets an answer
        assert Counter(code for code, _, _ in all_at_once(url, 100)) == {200: 100}


def test_who_waits_for_a_start_that_fails_is_told_why(mine: Footprint) -> None:
    with service_at_zero(mine, "+engine.extra.fake_fail=start") as url:
        for _ in range(2):  # one that waits, and one that comes later
            answer = httpx.post(f"{url}/v1/completions", json=BODY, timeout=HANG_S)
            assert (answer.status_code, answer.json()["error"]["type"]) == (503, "start_failed")
            assert "RuntimeError: this fake engine was told to fail" in answer.json()["error"]["message"]


def at_zero(url: str) -> bool:
    """The front is there, and knows that there is no replica."""
    try:
        return httpx.get(f"{url}/status.json", timeout=HANG_S).json()["waiting"] == {"model:tiny_llama": 0}
    except (httpx.HTTPError, ValueError, KeyError):
        return False


def all_at_once(url: str, number: int = CLIENTS) -> list[tuple[int, str, float]]:
    """For each of so many clients the code, what Retry-After says, and after how many seconds."""

    async def one(client: httpx.AsyncClient) -> tuple[int, str, float]:
        began = time.monotonic()
        answer = await client.post(f"{url}/v1/completions", json=BODY)
        return answer.status_code, answer.headers.get("retry-after", ""), time.monotonic() - began

    async def all_of_them() -> list[tuple[int, str, float]]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(timeout=HANG_S, limits=limits) as client:
            return await asyncio.gather(*(one(client) for _ in range(number)))

    return asyncio.run(all_of_them())
