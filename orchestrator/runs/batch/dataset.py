"""A batch as a Ray Data pipeline, for sets that outgrow one driver: `batch.engine=ray_data`.

Rows come from JSONL or Parquet files, wherever Ray Data reads them; answers go to JSONL files in a folder. Actors on
the cluster ask, with the same verdicts as a driver. Ray Data keeps a checkpoint of what is written: a row counts once
its file is complete. A driver, an asker or a node that dies costs its rows in flight, and the same command goes on.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
from pyarrow import fs
from pydantic import ValidationError
from ray.data import ActorPoolStrategy, DataContext
from ray.data.block import BlockAccessor
from ray.data.checkpoint import CheckpointConfig
from ray.data.datasource import BlockBasedFileDatasink
from ray.exceptions import RayError

from orchestrator.config import BatchConfig
from orchestrator.errors import ConfigError, ServeError
from orchestrator.progress import Say
from orchestrator.runs.batch.answers import as_line, read_line
from orchestrator.runs.batch.client import Answer, Client
from orchestrator.runs.batch.requests import Request, first_fault
from orchestrator.runs.batch.service import Target

_ID = "custom_id"
_COLUMNS = pa.schema([(_ID, pa.string()), ("line", pa.string())])
_BLOCK_BYTES = 1 << 20  # of a file of answers, about: what a driver that dies can lose
_LIGHT = {"num_cpus": 0.25}  # readers and writers; the replicas have the cores
_CALLS = 4  # batches of an asker at a time, so that one slow answer does not hold the rest up


class Asker:
    """Asks batches of rows; an actor of Ray Data's.

    Args:
        settings: of the batch.
        target: the service.
    """

    def __init__(self, settings: BatchConfig, target: Target) -> None:
        self._settings, self._model = settings, target.model
        say = lambda who, what: print(f"{who}: {what}", flush=True)  # noqa: E731 - into the worker's log
        self._client = Client(settings, target.url, target.key, say)

    async def __call__(self, rows: pa.Table) -> pa.Table:
        """The rows that have an answer, each with its line; others are left for the next run."""
        asked = await asyncio.gather(*(self._one(row) for row in rows.to_pylist()))
        found = [{_ID: name, "line": text} for name, text in filter(None, asked)]
        return pa.Table.from_pylist(found, _COLUMNS)

    async def _one(self, row: dict[str, Any]) -> tuple[str, str] | None:
        try:
            request = _request(row)
        except ValueError as error:  # the row's own fault is its own failed line
            name, answer = (
                str(row.get(_ID)),
                Answer(400, {"error": {"message": _fault(error), "type": "invalid_request_error"}}),
            )
        else:
            request.ask_of(self._model, over=bool(self._settings.model))
            name, answered = request.custom_id, await self._client.ask(request)
            if answered is None:
                return None
            answer = answered
        return name, as_line(name, answer.status, answer.body)


class Lines(BlockBasedFileDatasink):  # type: ignore[misc]
    """Writes the column `line`, a line each."""

    def __init__(self, path: str) -> None:
        super().__init__(path, file_format="jsonl")

    def write_block_to_file(self, block: BlockAccessor, file: Any) -> None:
        """Ray Data calls this for each file."""
        for row in block.iter_rows(public_row_format=True):
            file.write(f"{row['line']}\n".encode())


def answer(settings: BatchConfig, output: str, target: Target, say: Say) -> tuple[int, int, int, int, int, float]:
    """Ask all rows that have no line below `output` yet. Ray is connected.

    Returns:
        Rows, those answered, those failed, lines that were there before, 0 (tokens are not counted), and seconds.

    Raises:
        ConfigError: the input cannot be read.
        ServeError: no request would get an answer.
    """
    output = _absolute(output)
    try:
        rows = _read(_absolute(settings.input))
        if _ID not in (names := rows.schema().names):
            raise ConfigError(f"{settings.input} has no column {_ID}, but {', '.join(names)}.", where="batch.input")
        total, before = rows.count(), sum(_tally(output))
        say("batch", f"{total - before} of {total} requests to ask")
        began = time.monotonic()
        with _context(f"{output.rstrip('/')}.checkpoint"):
            _read(_absolute(settings.input)).map_batches(
                Asker,
                fn_constructor_args=(settings, target),
                batch_size=settings.concurrency,
                batch_format="pyarrow",
                compute=ActorPoolStrategy(size=settings.workers),
                num_cpus=0,
                max_concurrency=_CALLS,
            ).write_datasink(Lines(output), ray_remote_args=_LIGHT)
        return total, *_tally(output), before, 0, time.monotonic() - began
    except ConfigError:
        raise
    except (RayError, OSError, ValueError) as error:
        raise _plain(error, settings) from error


def _absolute(path: str) -> str:
    """Workers have another working directory."""
    return path if "://" in path else str(Path(path).resolve())


def _read(path: str) -> Any:
    read = ray.data.read_parquet if ".parquet" in path else ray.data.read_json
    return read(path, ray_remote_args=_LIGHT)


def _tally(output: str) -> tuple[int, int]:
    """How many lines of answers there are, and how many of failures."""
    system, root = fs.FileSystem.from_uri(output)
    if not any(f.is_file for f in system.get_file_info(fs.FileSelector(root, allow_not_found=True))):
        return 0, 0
    counted = ray.data.read_text(output, ray_remote_args=_LIGHT).map_batches(_count, **_LIGHT)
    return int(counted.sum("answered") or 0), int(counted.sum("failed") or 0)


def _count(lines: dict[str, Any]) -> dict[str, list[int]]:
    known = [found for line in lines["text"] if (found := read_line(line.encode()))]
    failed = sum(status >= 400 for _, status in known)
    return {"answered": [len(known) - failed], "failed": [failed]}


@contextmanager
def _context(checkpoint: str) -> Iterator[None]:
    context = DataContext.get_current()
    before = context.checkpoint_config, context.target_max_block_size
    context.checkpoint_config = CheckpointConfig(_ID, checkpoint, delete_checkpoint_on_success=False)
    context.target_max_block_size = _BLOCK_BYTES
    try:
        yield
    finally:
        context.checkpoint_config, context.target_max_block_size = before


def _request(row: dict[str, Any]) -> Request:
    """A row as a request; `body` is a struct, whose nulls are what other rows have, or JSON."""
    body = row.get("body")
    body = json.loads(body) if isinstance(body, str) else _without_nulls(body)
    return Request.model_validate({"method": "POST", **row, "body": body})


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nulls(part) for name, part in value.items() if part is not None}
    return [_without_nulls(part) for part in value] if isinstance(value, list) else value


def _fault(error: ValueError) -> str:
    return first_fault(error) if isinstance(error, ValidationError) else str(error)


def _plain(error: BaseException, settings: BatchConfig) -> Exception:
    """What an asker raised, or that Ray Data could not go on."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, (ServeError, ConfigError)):
            return cause
        cause = getattr(cause, "cause", None) or cause.__cause__
    text = " ".join(str(error).split())
    return ServeError(f"Ray Data could not answer {settings.input}: {text}"[:1000])
