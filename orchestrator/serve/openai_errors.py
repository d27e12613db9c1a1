"""Whatever goes wrong with a request, told in OpenAI's form: a line that a person can use, and no traceback."""

from __future__ import annotations

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
    app.add_exception_handler(OpenAIHTTPException, _openai_error)
    for kind in _OF_THE_REQUEST:
        app.add_exception_handler(kind, _of_the_request)
    app.add_exception_handler(RayTaskError, _of_a_replica)


async def _invalid(_: Request, refused: Exception) -> JSONResponse:
    first = refused.errors()[0] if isinstance(refused, RequestValidationError) and refused.errors() else {}
    where = ".".join(str(part) for part in first.get("loc", ()) if part != "body")
    return error(400, f"{first.get('msg', 'Invalid request')}{f' at {where}' if where else ''}", param=where or None)


async def _http_error(_: Request, refused: Exception) -> JSONResponse:
    status_code = refused.status_code if isinstance(refused, HTTPException) else 500
    kind = "not_found_error" if status_code == 404 else "invalid_request_error"
    return error(status_code, str(getattr(refused, "detail", refused)), kind)


async def _openai_error(_: Request, refused: Exception) -> JSONResponse:
    assert isinstance(refused, OpenAIHTTPException)  # noqa: S101 - registered for nothing else
    answer = error(refused.status_code, refused.message, refused.type)
    if isinstance(refused, ComeBack):
        answer.headers["Retry-After"] = str(refused.retry_after_s)
    return answer


async def _of_the_request(_: Request, refused: Exception) -> JSONResponse:
    """What is said of it while it is read."""
    return error(400, str(refused)[:_LONG])


async def _of_a_replica(_: Request, failed: Exception) -> JSONResponse:
    cause = getattr(failed, "cause", failed)
    if isinstance(cause, _OF_THE_REQUEST):
        return error(400, str(cause)[:_LONG])
    if isinstance(cause, KeyError) and cause.args == ("role",):  # of a message in Harmony's form, which has an author
        return error(400, "A message has no role.", param="messages")
    logger.error("a replica failed at a request", exc_info=failed)
    return error(500, f"The replica failed at this request: {one_line(cause)}", "internal_error")
