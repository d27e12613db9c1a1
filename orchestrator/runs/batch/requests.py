"""The input of a batch: requests in OpenAI's batch format, a JSON object a line."""

from __future__ import annotations

import json
import math
from codecs import BOM_UTF8
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

from pydantic import BaseModel, ValidationError

from orchestrator.errors import ConfigError

# What a file begins with that is no text in UTF-8 -> what it is.
_OTHERS = {
    b"\xff\xfe": "text in UTF-16",
    b"\xfe\xff": "text in UTF-16",
    b"\x1f\x8b": "compressed with gzip",
    b"(\xb5/\xfd": "compressed with zstd",
    b"PK\x03\x04": "a zip archive",
    b"PAR1": "Parquet",
}


class Request(BaseModel):
    """A line of the input, as OpenAI's batch API and `vllm run-batch` have it; further fields are left alone."""

    custom_id: str
    method: Literal["POST"]
    url: Literal["/v1/chat/completions", "/v1/completions", "/v1/embeddings"]
    body: dict[str, Any]

    def ask_of(self, model: str | None, *, over: bool) -> None:
        """Ask it of a model if it names none, or with `over` whatever it names; None: of the one that it names."""
        if model is not None and (over or self.body.get("model") is None):
            self.body["model"] = model


def first_fault(error: ValidationError) -> str:
    """What is wrong with a request, in a few words."""
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    return f"{first['msg']}{f' at {where}' if where else ''}"


def check(path: str, served: Sequence[str] = (), model: str | None = None) -> set[str]:
    """The ids of all requests, once every line was looked at.

    Args:
        path: of the input.
        served: the models that will answer; none: not known.
        model: asked in place of the one that a line names.

    Raises:
        ConfigError: a line is wrong, and which.
    """
    if not path:
        raise ConfigError("batch.input is empty.", where="batch.input", hint="Name a JSONL file of requests.")
    if served and model is not None and model not in served:
        raise ConfigError(f"batch.model={model} is not served; {', '.join(served)} is.", where="batch.model")
    ids: set[str] = set()
    for number, request in _lines(path):
        if request.custom_id in ids:
            _wrong(path, number, f"custom_id {request.custom_id!r} again")
        if request.body.get("stream"):
            _wrong(path, number, "a batch does not stream")
        named = request.body.get("model")
        if served and model is None and named is not None and named not in served:
            hint = f"batch.model={served[0]} asks that one, whatever the lines name."
            _wrong(path, number, f"model {named!r} is not served; {', '.join(served)} is", hint)
        ids.add(request.custom_id)
    if not ids:
        raise ConfigError(f"{path} has no request in it.", where="batch.input")
    return ids


def requests(path: str) -> Iterator[Request]:
    """The lines of an input, in turn.

    Raises:
        ConfigError: a line is wrong, and which.
    """
    return (request for _, request in _lines(path))


def _lines(path: str) -> Iterator[tuple[int, Request]]:
    """The requests with the numbers of their lines in the file; blank lines count, and are passed over."""
    if Path(path).exists() and not Path(path).is_file():  # a pipe can be read once, and we read twice
        raise ConfigError(f"{path} is no file.", where="batch.input")
    try:
        with Path(path).open("rb") as file:
            for number, line in enumerate(file, 1):
                if number == 1:
                    line = line.removeprefix(BOM_UTF8)
                    for start, what in _OTHERS.items():
                        if line.startswith(start):
                            _wrong(path, 1, f"the file is {what}", "A batch is JSON lines in UTF-8.")
                if line.strip():
                    yield number, _request(path, number, line)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}.", where="batch.input") from error


def _request(path: str, number: int, line: bytes) -> Request:
    try:
        return Request.model_validate(_json(line.decode()))
    except ValidationError as error:
        _wrong(path, number, first_fault(error))
    except json.JSONDecodeError as error:
        _wrong(path, number, f"Invalid JSON: {error.msg.removesuffix(' at')} at column {error.colno}")
    except RecursionError:
        _wrong(path, number, "Invalid JSON: nested too deeply")
    except ValueError as error:  # not UTF-8, or a number or text that JSON has not
        _wrong(path, number, str(error))


def _json(line: str) -> Any:
    """Raises ValueError for what Python takes, and no service could: NaN, 1e999, half a surrogate pair."""
    found = json.loads(line, parse_constant=_no_number, parse_float=_finite)
    if "\\ud" in line.lower():
        json.dumps(found, ensure_ascii=False).encode()
    return found


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _no_number(text)


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number in JSON")


def _wrong(path: str, number: int, what: str, hint: str = "") -> NoReturn:
    raise ConfigError(f"{path}, line {number}: {what}.", where="batch.input", hint=hint) from None
