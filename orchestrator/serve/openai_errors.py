"""Whatever goes wrong with a request, told in OpenAI's form: a line that a person can use, and no traceback."""

from __future__ import annotations

import json
import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from ray.exceptions import RayTaskError
from starlette.exceptions import HTTPException

from orchestrator import compat
from orchestrator.compat import table
from orchestrator.errors import one_line
from orchestrator.serve.auth import error

logger = logging.getLogger("ray.serve")
OpenAIHTTPException: Any = compat.get(table.HTTP_ERROR)
# what `vllm serve` answers with 400: vllm/entrypoints/serve/exception_handling/error_response.py
_OF_THE_REQUEST = (*compat.get(table.CLIENT_ERRORS), ValueError, TypeError, OverflowError)
_LONG = 1000  # characters: what is wrong may quote the request


class ComeBack(OpenAIHTTPException):  # type: ignore[misc, valid-type]
    """429: the service has no replica yet, and enough requests that wait for it."""

    def __init__(self, retry_after_s: int) -> None:
        text = "No replica of the model runs yet, and many wait for it; try again later."
        super().__init__(429, text, "overloaded")
        self.retry_after_s = retry_after_s


def add_handlers(app: FastAPI) -> None:
    """Let a web application answer errors so; Ray's own handlers, which come later, then see none of these."""
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    for kind in (OpenAIHTTPException, *_OF_THE_REQUEST, RayTaskError):
        app.add_exception_handler(kind, _failed)


def answer(failed: Exception) -> JSONResponse:
    """What the client is told of a request that failed."""
    if isinstance(failed, OpenAIHTTPException):
        told = error(failed.status_code, failed.message, failed.type)
        if isinstance(failed, ComeBack):
            told.headers["Retry-After"] = str(failed.retry_after_s)
        return told
    cause = getattr(failed, "cause", failed)
    if isinstance(cause, _OF_THE_REQUEST):  # said of it while it is read, here or in a replica
        return error(400, str(cause)[:_LONG])
    if isinstance(cause, KeyError) and cause.args == ("role",):  # of a message in Harmony's form, which has an author
        return error(400, "A message has no role.", param="messages")
    logger.error("a replica failed at a request", exc_info=failed)
    return error(500, f"The replica failed at this request: {one_line(cause)}", "internal_error")


def event(failed: Exception) -> str:
    """The same as the end of a stream that has begun, as vLLM has it: clients raise it; a silent end would pass."""
    told = answer(failed)
    body = json.loads(bytes(told.body))
    body["error"]["code"] = told.status_code
    return f"data: {json.dumps(body)}\n\n"


async def _failed(_: Request, failed: Exception) -> JSONResponse:
    return answer(failed)


async def _invalid(_: Request, refused: Exception) -> JSONResponse:
    first = refused.errors()[0] if isinstance(refused, RequestValidationError) and refused.errors() else {}
    where = ".".join(str(part) for part in first.get("loc", ()) if part != "body")
    return error(400, f"{first.get('msg', 'Invalid request')}{f' at {where}' if where else ''}", param=where or None)


async def _http_error(_: Request, refused: Exception) -> JSONResponse:
    status_code = refused.status_code if isinstance(refused, HTTPException) else 500
    kind = "not_found_error" if status_code == 404 else "invalid_request_error"
    return error(status_code, str(getattr(refused, "detail", refused)), kind)
