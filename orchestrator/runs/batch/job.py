"""A file of requests through a service: OpenAI's batch format in and out, each request answered once.

An answer is a line of the output as soon as it is there. A run that was killed goes on where it was: requests whose
line is in the output are not asked again.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import httpx

from orchestrator.config import AppConfig, BatchConfig
from orchestrator.errors import ConfigError, ServeError
from orchestrator.progress import Bar, Say
from orchestrator.runs.batch.files import Output, Request, check, requests

_AGAIN = frozenset({429, 500, 502, 503, 504})  # the service's state, not the request
_PAUSE_S = 0.5  # before the second attempt; doubled for each one after it


@dataclass(frozen=True)
class BatchResult:
    """How a batch ended.

    Attributes:
        answered: requests with status 200 in the output, those of earlier runs included.
        failed: requests that the service refused; their lines say why.
        before: how many lines the output had when this run began.
        tokens: generated in this run.
        seconds: from the first request of this run to its last answer.
    """

    output: str
    requests: int
    answered: int
    failed: int
    before: int
    tokens: int
    seconds: float

    @property
    def ok(self) -> bool:
        """Everything was answered."""
        return self.answered == self.requests

    def summary(self) -> dict[str, Any]:
        """The job's RESULT line."""
        left = self.requests - self.answered - self.failed
        error = f"{self.failed} requests failed, {left} are unanswered; the same command asks those again"
        return {
            "ok": self.ok,
            "output": self.output,
            "requests": self.requests,
            "answered": self.answered,
            "failed": self.failed,
            "before": self.before,
            "tokens_per_s": round(self.tokens / self.seconds, 1) if self.seconds else None,
            "seconds": round(self.seconds, 2),
            **({} if self.ok else {"error": error}),
        }


def execute(app: AppConfig, say: Say, bar: Bar) -> BatchResult:
    """Answer what is not answered yet, with a service of our own or the one at `batch.url`.

    Raises:
        ConfigError: the input is wrong (nothing is asked then), or another run writes the output.
        OrchestratorError: the service did not come up, or is gone.
    """
    settings = app.batch
    path = settings.output or f"{settings.input.removesuffix('.jsonl')}.answers.jsonl"
    ids = check(settings.input)
    with Output(path) as output:
        strangers = output.done.keys() - ids
        if strangers:
            raise ConfigError(
                f"{path} has answers to other requests, {min(strangers)!r} for one.",
                where="batch.output",
                hint="Name a new file.",
            )
        before = len(output.done)
        asked = _Asked(settings, output, len(ids), bar)
        if before < len(ids):
            say("batch", f"{len(ids) - before} of {len(ids)} requests to ask")
            with ExitStack() as stack:
                url: str | None = settings.url
                names: tuple[str, ...] = ()
                if url is None:
                    from orchestrator.serve.launch import (
                        serving,  # vLLM and Ray, which a service elsewhere does not need
                    )

                    service = stack.enter_context(serving(_on_a_free_port(app), say))
                    url, names = service.address, service.models
                asyncio.run(asked.all(url, names))
        answered = sum(status == 200 for status in output.done.values())
    return BatchResult(path, len(ids), answered, len(output.done) - answered, before, asked.tokens, asked.seconds)


class _Asked:
    """This run's requests."""

    def __init__(self, settings: BatchConfig, output: Output, total: int, bar: Bar) -> None:
        self._settings, self._output, self._total, self._bar = settings, output, total, bar
        self.tokens, self.seconds = 0, 0.0

    async def all(self, url: str, names: tuple[str, ...]) -> None:
        """Ask what is left, `batch.concurrency` at a time."""
        left = (r for r in requests(self._settings.input) if r.custom_id not in self._output.done)
        headers = {"Authorization": f"Bearer {key}"} if (key := os.environ.get("OPENAI_API_KEY")) else {}
        limits = httpx.Limits(max_connections=self._settings.concurrency)
        began = time.monotonic()
        async with httpx.AsyncClient(
            base_url=url, headers=headers, timeout=self._settings.timeout_s, limits=limits
        ) as client:
            await asyncio.gather(*(self._some(client, left, names) for _ in range(self._settings.concurrency)))
        self.seconds = time.monotonic() - began

    async def _some(self, client: httpx.AsyncClient, left: Iterator[Request], names: tuple[str, ...]) -> None:
        for request in left:  # shared by all workers, each of which takes the next
            if names:
                request.body.setdefault("model", names[0])
            answer = await self._one(client, request)
            if answer is None:
                continue
            body = answer.json()
            self.tokens += (body.get("usage") or {}).get("completion_tokens", 0)
            self._output.add(request, answer.status_code, body)
            self._bar(len(self._output.done), self._total)

    async def _one(self, client: httpx.AsyncClient, request: Request) -> httpx.Response | None:
        """The answer; None if the service could not give one this time.

        Raises:
            ServeError: nothing listens there any more.
        """
        for attempt in range(self._settings.retries + 1):
            if attempt:
                await asyncio.sleep(_PAUSE_S * 2 ** (attempt - 1))
            try:
                answer = await client.post(request.url, json=request.body)
            except httpx.ConnectError as error:
                if attempt == self._settings.retries:
                    raise ServeError(f"No service at {client.base_url}: {error}.") from error
                continue
            except httpx.TransportError:
                continue
            if answer.status_code not in _AGAIN:
                return answer
        return None


def _on_a_free_port(app: AppConfig) -> AppConfig:
    from orchestrator.cluster.ray_start import free_ports

    cell = deepcopy(app)
    (cell.serve.port,) = free_ports(1)  # not one that the system may give to a connection meanwhile
    return cell
