"""The output of a batch: a line an answer, in OpenAI's batch format; and the error file, if one is asked for."""

from __future__ import annotations

import fcntl
import json
import os
import uuid
from collections.abc import Container
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from orchestrator.errors import ConfigError, OrchestratorError

_ID = "batch_req_"  # ids of answers begin like this, with OpenAI as with us
_BEGIN = f'{{"id": "{_ID}'.encode()  # and our lines like this


class _File:
    """Lines of answers; one run at a time. Another tool's file is refused, and stays as it is.

    Args:
        path: made, with its folder, if it is not there.
        where: the setting that names it.
        done: gets the status of each custom_id that has a line.
    """

    def __init__(self, path: str, where: str, done: dict[str, int]) -> None:
        self.path, self.where, self.done = Path(path), where, done

    def __enter__(self) -> _File:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a+b")
        except OSError as error:
            raise ConfigError(f"{self.path} cannot be written: {error.strerror}.", where=self.where) from error
        try:
            if not self.path.is_file():  # a device or a pipe cannot be gone on with
                raise ConfigError(f"{self.path} is no file.", where=self.where)
            self._lock()
            self._read()
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # it was told when it was written
            os.fsync(self._file.fileno())
        with suppress(OSError):
            self._file.close()

    def add(self, name: str, status: int, line: bytes) -> None:
        """Append a line; it outlives this process once this returns.

        Raises:
            OrchestratorError: it cannot be written.
        """
        try:
            self._file.write(line + b"\n")
            self._file.flush()
        except OSError as error:
            raise OrchestratorError(f"{self.path} cannot be written: {error.strerror}.") from error
        self.done[name] = status

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f"Another run writes {self.path}.", where=self.where) from error
        except OSError as error:
            raise ConfigError(f"{self.path} cannot be locked: {error.strerror}.", where=self.where) from error

    def _read(self) -> None:
        self._file.seek(0)
        whole, line = 0, b"\n"
        for number, line in enumerate(self._file, 1):
            known = read_line(line)
            if known is not None:
                self.done[known[0]] = known[1]
            elif line.strip() and (line.endswith(b"\n") or not _BEGIN.startswith(line[: len(_BEGIN)])):
                raise ConfigError(
                    f"{self.path}, line {number}: no answer of a batch of ours.",
                    where=self.where,
                    hint="Name a new file; this one stays as it is.",
                )
            elif line.strip():
                break  # its writer was killed half way
            whole += len(line)
        else:
            if not line.endswith(b"\n"):
                self._file.write(b"\n")
            return
        self._file.truncate(whole)


class Output:
    """Where answers go, and what is there already.

    Args:
        path: of the output file.
        errors: a file of its own for requests that failed, or "".

    Attributes:
        done: the status of each custom_id that has a line.
    """

    def __init__(self, path: str, errors: str = "") -> None:
        self.done: dict[str, int] = {}
        named = {path: "batch.output", errors: "batch.errors"}
        self._files = [_File(name, where, self.done) for name, where in named.items() if name]
        self._open = ExitStack()

    def __enter__(self) -> Output:
        with ExitStack() as opened:
            for file in self._files:
                opened.enter_context(file)
            self._open = opened.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def take(self, path: Path, ids: Container[str]) -> None:
        """Append what another output has of these ids, and this one has not."""
        with path.open("rb") as lines:
            for line in lines:
                known = read_line(line)
                if known is not None and known[0] in ids and known[0] not in self.done:
                    self._add(*known, line.rstrip())

    def add(self, custom_id: str, status: int, body: Any) -> None:
        """Append an answer; it outlives this process once this returns.

        Raises:
            OrchestratorError: it cannot be written.
        """
        self._add(custom_id, status, as_line(custom_id, status, body).encode())

    def _add(self, custom_id: str, status: int, line: bytes) -> None:
        self._files[-1 if status >= 400 else 0].add(custom_id, status, line)


def as_line(custom_id: str, status: int, body: Any) -> str:
    """An answer as OpenAI's batch format has it."""
    name = f"{_ID}{uuid.uuid4().hex}"
    response = {"status_code": status, "request_id": name, "body": body}
    return json.dumps({"id": name, "custom_id": custom_id, "response": response, "error": None})


def read_line(line: bytes) -> tuple[str, int] | None:
    """The custom_id and the status in a line of ours; None: it is no such line."""
    try:
        found = json.loads(line)
        name, status = found["custom_id"], found["response"]["status_code"]
        ours = found["id"].startswith(_ID) and isinstance(name, str) and isinstance(status, int)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    return (name, status) if ours else None
