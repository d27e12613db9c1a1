"""Load for a service: clients that stream an answer and ask again, and count how each one ended."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

import httpx

from orchestrator.serve.launch import Service

HANG_S = 60.0  # a stream that is silent for so long hangs


class Clients:
    """Streams completions until it is left. Use it as a context manager.

    Args:
        service: whom to ask, for its first model.
        number: clients at a time.
        tokens: of each answer.

    Attributes:
        ends: how many requests were `answered`, `failed` (with a plain error), `cut` (neither finished nor failed) or
            `hung`.
        tokens: when pieces of answers arrived, in seconds of the monotonic clock; about one a token.
    """

    def __init__(self, service: Service, number: int, tokens: int) -> None:
        self.ends: Counter[str] = Counter()
        self.tokens: list[float] = []
        self._url = f"{service.address}/v1/completions"
        self._body = {"model": service.models[0], "prompt": "The sea is", "max_tokens": tokens, "ignore_eos": True}
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(number)]

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=HANG_S + 5.0)

    def rate(self, start: float, end: float) -> float:
        """Tokens per second between two moments."""
        return sum(start <= t < end for t in self.tokens) / (end - start)

    def _run(self) -> None:
        with httpx.Client(timeout=HANG_S) as client:
            while not self._stop.is_set():
                self.ends[self._one(client)] += 1

    def _one(self, client: httpx.Client) -> str:
        end = "cut"
        try:
            with client.stream("POST", self._url, json={**self._body, "stream": True}) as answer:
                if answer.status_code != 200:
                    return "failed"
                for line in answer.iter_lines():
                    if not line.startswith("data: {"):
                        continue
                    part = json.loads(line.removeprefix("data: "))
                    if "error" in part:
                        end = "failed"
                    elif part["choices"]:
                        self.tokens.append(time.monotonic())
                        end = "answered" if part["choices"][0]["finish_reason"] else end
        except httpx.TimeoutException:
            return "hung"
        except httpx.HTTPError:
            return "cut"
        return end


@contextmanager
def empty_vllm_cache() -> Iterator[None]:
    """Stock replicas share vLLM's own cache folder, which starts out empty; ours have one each anyway."""
    before, folder = os.environ.get("VLLM_CACHE_ROOT"), tempfile.mkdtemp(prefix="orchestrator-stock-")
    os.environ["VLLM_CACHE_ROOT"] = folder
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if before is None:
            del os.environ["VLLM_CACHE_ROOT"]
        else:
            os.environ["VLLM_CACHE_ROOT"] = before
