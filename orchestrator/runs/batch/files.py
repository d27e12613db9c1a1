"""The files of a batch: requests in, answers out, in OpenAI's batch format."""

from __future__ import annotations

import fcntl
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from orchestrator.errors import ConfigError


class Request(BaseModel):
    """A line of the input, as OpenAI's batch API and `vllm run-batch` have it."""

    model_config = ConfigDict(extra="forbid")
    custom_id: str
    method: Literal["POST"]
    url: Literal["/v1/chat/completions", "/v1/completions"]
    body: dict[str, Any]


class Output:
    """The output file: what it holds, and a line more for each answer. One run at a time.

    Attributes:
        done: the status of each custom_id that has a line.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.done: dict[str, int] = {}

    def __enter__(self) -> Output:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise ConfigError(f"Another run writes {self.path}.", where="batch.output") from error
        self._file.seek(0)
        whole = 0
        for line in self._file:
            if not line.endswith(b"\n"):  # its writer was killed half way
                break
            known = json.loads(line)
            self.done[known["custom_id"]] = known["response"]["status_code"]
            whole += len(line)
        self._file.truncate(whole)
        return self

    def __exit__(self, *_: object) -> None:
        os.fsync(self._file.fileno())
        self._file.close()

    def add(self, request: Request, status: int, body: Any) -> None:
        """Append an answer; it outlives this process once this returns."""
        name = f"batch_req_{uuid.uuid4().hex}"
        response = {"status_code": status, "request_id": name, "body": body}
        line = json.dumps({"id": name, "custom_id": request.custom_id, "response": response, "error": None})
        self._file.write(line.encode() + b"\n")
        self._file.flush()
        self.done[request.custom_id] = status


def check(path: str) -> set[str]:
    """The ids of all requests, once every line was looked at.

    Raises:
        ConfigError: a line is wrong, and which.
    """
    if not path:
        raise ConfigError("batch.input is empty.", where="batch.input", hint="Name a JSONL file of requests.")
    ids: set[str] = set()
    for number, request in enumerate(requests(path), 1):
        if request.custom_id in ids:
            raise ConfigError(f"{path}, line {number}: custom_id {request.custom_id!r} again.", where="batch.input")
        if request.body.get("stream"):
            raise ConfigError(f"{path}, line {number}: a batch does not stream.", where="batch.input")
        ids.add(request.custom_id)
    if not ids:
        raise ConfigError(f"{path} has no request in it.", where="batch.input")
    return ids


def requests(path: str) -> Iterator[Request]:
    """The lines of an input, in turn.

    Raises:
        ConfigError: a line is wrong, and which.
    """
    try:
        with Path(path).open("rb") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    yield Request.model_validate_json(line)
                except ValidationError as error:
                    first = error.errors()[0]
                    where = ".".join(map(str, first["loc"]))
                    text = f"{path}, line {number}: {first['msg']}{f' at {where}' if where else ''}."
                    raise ConfigError(text, where="batch.input") from error
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}.", where="batch.input") from error
