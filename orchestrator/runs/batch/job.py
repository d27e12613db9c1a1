"""A file of requests through a service: OpenAI's batch format in and out, each request answered once.

An answer is a line of the output as soon as it is there. A run that was killed goes on where it was: requests whose
line is in the output are not asked again.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.config import AppConfig, BatchConfig, BatchEngine
from orchestrator.errors import ConfigError, ServeError
from orchestrator.progress import Bar, Say
from orchestrator.runs.batch.answers import Output
from orchestrator.runs.batch.client import Client
from orchestrator.runs.batch.requests import Request, check, requests
from orchestrator.runs.batch.service import served, service

Earlier = Callable[[list[str]], Iterable[Path]]  # names of files -> copies of them
MARK = "batch.json"  # in a job's folder: of which input the answers are
_LEFT_IN_A_ROW = 100  # without one answer between them: the service is down, whatever it says


@dataclass(frozen=True)
class BatchResult:
    """How a batch ended.

    Attributes:
        answered: requests with an answer in the output, those of earlier runs included.
        failed: requests that the service refused; their lines say why.
        before: how many lines the output had when this run began.
        tokens: generated in this run.
        seconds: from the first request of this run to its last answer.
        trouble: why a request of this run was left unanswered, or "".
    """

    output: str
    requests: int
    answered: int
    failed: int
    before: int
    tokens: int
    seconds: float
    trouble: str = ""

    @property
    def ok(self) -> bool:
        """Everything was answered."""
        return self.answered == self.requests

    def summary(self) -> dict[str, Any]:
        """The job's RESULT line."""
        left = self.requests - self.answered - self.failed
        error = f"{self.failed} requests failed, {left} are unanswered; the same command asks those again"
        error += f" ({self.trouble})" if left and self.trouble else ""
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


def execute(
    app: AppConfig, say: Say, bar: Bar, folder: Path | None = None, earlier: Earlier | None = None
) -> BatchResult:
    """Answer what is not answered yet, with a service of our own or the one at `batch.url`.

    Args:
        app: the checked configuration.
        say, bar: for the display.
        folder: the job's own, for a link to the answers; None: there is to be none.
        earlier: finds what earlier jobs left of these answers in their folders.

    Raises:
        ConfigError: a file, the address or a model is wrong (nothing is asked then), or another run writes the output.
        OrchestratorError: the service did not come up, takes no requests of ours, or is gone.
    """
    settings = app.batch
    if settings.engine is BatchEngine.ray_data:
        return _on_a_cluster(app, say)
    ids = check(settings.input, served(app), settings.model)
    paths = files(settings)
    for setting, path in (("batch.output", paths[0]), ("batch.errors", paths[-1])):
        if Path(path).resolve() == Path(settings.input).resolve():
            raise ConfigError(f"{setting} is the input.", where=setting)
    with Output(*paths) as output:
        strangers = output.done.keys() - ids
        if strangers:
            raise ConfigError(
                f"{paths[0]} has answers to other requests, {min(strangers)!r} for one.",
                where="batch.output",
                hint="Name a new file.",
            )
        if folder is not None:
            _link(folder, settings.input, paths)
        for found in earlier([Path(path).name for path in paths]) if earlier else ():
            output.take(found, ids)
        before = len(output.done)
        asked = _Asked(settings, output, len(ids), bar)
        if before < len(ids):
            say("batch", f"{len(ids) - before} of {len(ids)} requests to ask")
            with service(app, say) as target:
                asyncio.run(asked.all(Client(settings, target.url, target.key, say), target.model))
        answered = sum(status < 400 for status in output.done.values())
    failed = len(output.done) - answered
    return BatchResult(paths[0], len(ids), answered, failed, before, asked.tokens, asked.seconds, asked.trouble)


def _on_a_cluster(app: AppConfig, say: Say) -> BatchResult:
    from orchestrator.cluster import connect
    from orchestrator.runs.batch import dataset

    settings = app.batch
    if not settings.input or settings.errors:
        where = "batch.errors" if settings.errors else "batch.input"
        raise ConfigError(
            f"{where}={getattr(settings, where[6:])!r} does not go with batch.engine=ray_data.", where=where
        )
    output = settings.output or f"{settings.input.rstrip('/').removesuffix('.jsonl').removesuffix('.parquet')}.answers"
    with ExitStack() as stack:
        if settings.url:
            stack.enter_context(connect.connected(app.cluster, say))
        target = stack.enter_context(service(app, say))
        return BatchResult(output, *dataset.answer(settings, output, target, say))


def files(settings: BatchConfig) -> list[str]:
    """The output, and the error file if there is to be one."""
    output = settings.output or f"{settings.input.removesuffix('.jsonl')}.answers.jsonl"
    return [output, settings.errors] if settings.errors else [output]


class _Asked:
    """This run's requests."""

    def __init__(self, settings: BatchConfig, output: Output, total: int, bar: Bar) -> None:
        self._settings, self._output, self._total, self._bar = settings, output, total, bar
        self._in_a_row = 0  # requests that were left, since the last answer
        self.tokens, self.seconds, self.trouble = 0, 0.0, ""

    async def all(self, client: Client, model: str | None) -> None:
        """Ask what is left, `batch.concurrency` at a time.

        Args:
            client: of the service.
            model: for requests that name none, or with `batch.model` for all.
        """
        left = (r for r in requests(self._settings.input) if r.custom_id not in self._output.done)
        began = time.monotonic()
        async with client:
            workers = [asyncio.create_task(self._some(client, left, model)) for _ in range(self._settings.concurrency)]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
        self.seconds, self.trouble = time.monotonic() - began, client.trouble

    async def _some(self, client: Client, left: Iterator[Request], model: str | None) -> None:
        for request in left:  # shared by all workers, each of which takes the next
            request.ask_of(model, over=bool(self._settings.model))
            answer = await client.ask(request)
            if answer is None:
                self._in_a_row += 1
                if self._in_a_row >= _LEFT_IN_A_ROW:
                    text = f"{self._in_a_row} requests in a row got no answer. {client.trouble}."
                    raise ServeError(text, hint="The same command asks what is left.")
                continue
            self._in_a_row = 0
            self.tokens += _tokens(answer.body)
            self._output.add(request.custom_id, answer.status, answer.body)
            self._bar(len(self._output.done), self._total)


def _link(folder: Path, source: str, paths: Sequence[str]) -> None:
    """The answers are among the job's outputs, and are uploaded with them."""
    with Path(source).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    (folder / MARK).write_text(json.dumps({"input_sha256": digest}))
    for path in map(Path, paths):
        link = folder / path.name
        if link.is_symlink():
            link.unlink()
        if not link.exists():  # else the answers themselves are there
            link.symlink_to(path.resolve())


def _tokens(body: dict[str, Any]) -> int:
    """How many were generated, where the service says so."""
    usage = body.get("usage")
    found = usage.get("completion_tokens") if isinstance(usage, dict) else None
    return found if isinstance(found, int) else 0
