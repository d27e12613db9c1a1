"""The OpenAI-compatible front: Ray Serve LLM's ingress behind a gate, with bounds on requests, and plain errors."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Sequence
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError
from ray.serve.llm.ingress import OpenAiIngress, make_fastapi_ingress
from starlette.exceptions import HTTPException

from orchestrator import compat
from orchestrator.compat import table
from orchestrator.config import AppConfig
from orchestrator.serve import status
from orchestrator.serve.auth import Gate, error
from orchestrator.serve.warm_ahead import Ahead

OpenAIHTTPException: Any = compat.get(table.HTTP_ERROR)
_TRIES = 2  # a request whose replica died before it answered is asked once more


class Ingress(OpenAiIngress):
    """Ray's ingress, and our status page.

    Args:
        app: the checked configuration.
        ahead: what makes nodes ready ahead of the autoscaler, if that is wanted.
        arguments: Ray's.
    """

    def __init__(self, *arguments: Any, app: AppConfig, ahead: Ahead | None, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._namespace, self._max_n = app.cluster.namespace, app.serve.max_n
        self._ahead = asyncio.get_running_loop().create_task(ahead.run()) if ahead else None

    async def status_page(self) -> HTMLResponse:
        """For people: replicas, how they started, and the graph cache."""
        return HTMLResponse(status.page(await status.collect(self._namespace)))

    async def status_json(self) -> JSONResponse:
        """The same for programs."""
        return JSONResponse(await status.collect(self._namespace))

    async def health(self) -> Response:
        """200 while the service takes requests."""
        return Response()

    async def _get_response(self, *, body: Any, call_method: str, raw_request: Request | None = None) -> Any:
        _check(body, self._max_n)
        begun = False
        for left in reversed(range(_TRIES)):
            try:
                async for part in super()._get_response(body=body, call_method=call_method, raw_request=raw_request):
                    begun = True
                    yield part
                return
            except BackPressureError as full:
                raise OpenAIHTTPException(503, "The service is overloaded; try again later.", "overloaded") from full
            except (RayActorError, RayTaskError) as lost:
                if not _replica_died(lost):
                    raise
                if begun:
                    yield _cut_short()
                    return
                if not left:
                    raise OpenAIHTTPException(
                        503, "The replica that answered died; try again.", "replica_died"
                    ) from lost


def build(keys: Sequence[str], max_body: int) -> Any:
    """The ingress as a class for `serve.deployment`."""
    app = compat.get(table.INGRESS_INIT)()
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(OpenAIHTTPException, _openai_error)
    app.add_middleware(Gate, keys=list(keys), max_body=max_body)
    ours = {
        "status_page": lambda app: app.get("/status", response_class=HTMLResponse),
        "status_json": lambda app: app.get("/status.json"),
        "health": lambda app: app.get("/health"),
    }
    return make_fastapi_ingress(Ingress, endpoint_map={**compat.get(table.ENDPOINTS), **ours}, app=app)


def _check(body: Any, max_n: int) -> None:
    """What vLLM would take for an instruction to work for hours, or for a number."""
    for name in ("n", "best_of"):
        value = getattr(body, name, None)
        if value is not None and not 1 <= value <= max_n:
            raise OpenAIHTTPException(400, f"{name}={value} has to be in 1..{max_n}.", "invalid_request_error")
    for name in body.model_fields_set:
        value = getattr(body, name, None)
        if isinstance(value, float) and not math.isfinite(value):
            raise OpenAIHTTPException(400, f"{name} has to be a finite number.", "invalid_request_error")


def _replica_died(lost: Exception) -> bool:
    return isinstance(lost, RayActorError) or type(getattr(lost, "cause", None)).__name__ == "EngineDeadError"


def _cut_short() -> str:
    """The end of a stream whose replica died: an error that clients raise, never a silent end."""
    message = "The replica that answered died, or had to go before the answer was complete."
    body = {"error": {"message": message, "type": "replica_died", "param": None, "code": 503}}
    return f"data: {json.dumps(body)}\n\n"


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
    return error(refused.status_code, refused.message, refused.type)
