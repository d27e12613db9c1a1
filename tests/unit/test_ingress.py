"""The service's front: who gets in, which model is meant, and how much one request may ask for."""

from __future__ import annotations

import asyncio
import pickle
import time
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError
from ray.exceptions import RayTaskError
from starlette.middleware.cors import CORSMiddleware
from starlette.testclient import TestClient
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.pooling.embed.protocol import EmbeddingChatRequest
from vllm.entrypoints.serve.engine.protocol import ModelCard as VLLMCard
from vllm.exceptions import VLLMValidationError

from orchestrator.config import ServeConfig
from orchestrator.serve import ingress
from orchestrator.serve.auth import Gate, _digest
from orchestrator.serve.ingress import Ingress
from orchestrator.serve.model_cards import card, facts
from orchestrator.serve.openai_errors import OpenAIHTTPException
from orchestrator.serve.request_checks import check

PREFLIGHT = {
    "Origin": "https://page.example",
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type",
}


def test_the_gate_is_inside_of_what_answers_preflights() -> None:
    app = ingress.web_app(["digest"], 1000)
    order = [middleware.cls for middleware in app.user_middleware]
    assert order.index(CORSMiddleware) + 1 == order.index(Gate)


@pytest.fixture
def client() -> TestClient:
    app = ingress.web_app([_digest("sk-good")], 1000)

    @app.post("/v1/completions")
    async def completions() -> dict[str, str]:
        return {"id": "x"}

    return TestClient(app)


def test_a_preflight_needs_no_key(client: TestClient) -> None:
    answer = client.options("/v1/completions", headers=PREFLIGHT)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] in ("*", PREFLIGHT["Origin"])
    assert "authorization" in answer.headers["access-control-allow-headers"].lower()


@pytest.mark.parametrize("key", [None, "sk-wrong", ""])
def test_a_refusal_can_be_read_by_a_page(client: TestClient, key: str | None) -> None:
    headers = {"Origin": PREFLIGHT["Origin"], **({} if key is None else {"Authorization": f"Bearer {key}"})}
    answer = client.post("/v1/completions", json={}, headers=headers)
    assert answer.status_code == 401
    assert answer.headers["access-control-allow-origin"] in ("*", PREFLIGHT["Origin"])
    assert len(answer.headers.get_list("access-control-allow-origin")) == 1


@pytest.mark.parametrize(
    ("method", "path"),
    [("OPTIONS", "/v1/completions"), ("HEAD", "/v1/models"), ("GET", "/docs"), ("GET", "/openapi.json"),
     ("GET", "/v1/../health/../v1/models"), ("GET", "/healthy")],
)  # fmt: skip
def test_everything_else_stays_shut(client: TestClient, method: str, path: str) -> None:
    assert client.request(method, path).status_code == 401


@pytest.mark.parametrize("path", ["/health", "/ping"])
def test_these_are_open(client: TestClient, path: str) -> None:
    assert client.get(path).status_code != 401


def test_under_a_route_prefix_paths_are_the_same() -> None:
    app = ingress.web_app([_digest("sk-good")], 1000)
    inner = TestClient(app, root_path="/batch-1")
    assert inner.get("/batch-1/health").status_code != 401
    assert inner.get("/batch-1/v1/models").status_code == 401


def front_of(*models: str, adapters: tuple[str, ...] = ()) -> Any:
    class Handle(SimpleNamespace):
        def options(self, **more: Any) -> tuple[str, Any]:
            return self.name, more.get("multiplexed_model_id")

    made = Ingress.__new__(Ingress)
    made._model_cards = dict.fromkeys(models)
    made._lora_paths = dict.fromkeys(adapters, "s3://adapters")
    made._default_serve_handles = {name: Handle(name=name) for name in models}
    made._configured_serve_handles = {}
    return made


@pytest.mark.parametrize("model", [None, "", "a"])
def test_without_a_name_the_only_model_is_meant(model: str | None) -> None:
    assert asyncio.run(front_of("a")._get_model_id(model)) == "a"


def test_with_several_models_a_name_is_needed() -> None:
    with pytest.raises(OpenAIHTTPException, match="a, b") as caught:
        asyncio.run(front_of("a", "b")._get_model_id(None))
    assert caught.value.status_code == 400


@pytest.mark.parametrize("model", ["b", "a:latest", "A", "a/b", "../a", "a ", ":a", "a:"])
def test_a_model_that_is_not_there_is_404(model: str) -> None:
    with pytest.raises(OpenAIHTTPException) as caught:
        asyncio.run(front_of("a")._get_model_id(model))
    assert caught.value.status_code == 404
    assert caught.value.message == f"The model `{model}` does not exist."


@pytest.mark.parametrize("name", ["qwen3:8b", "org/model", "org/model:q4"])
def test_names_with_colons_and_slashes_are_names(name: str) -> None:
    made = front_of(name, "other")
    assert asyncio.run(made._get_model_id(name)) == name
    assert made._get_configured_serve_handle(name) == (name, None)


def test_an_adapter_is_found_by_its_model() -> None:
    made = front_of("a", adapters=("a",))
    assert asyncio.run(made._get_model_id("a:french")) == "a:french"
    assert made._get_configured_serve_handle("a:french") == ("a", "a:french")


class Body(SimpleNamespace):
    @property
    def model_fields_set(self) -> set[str]:
        return set(vars(self))


@pytest.mark.parametrize(
    "asked",
    [
        {"n": 17}, {"best_of": 17}, {"n": 0}, {"n": -1}, {"prompt": ["x"] * 129}, {"prompt": [[1, 2]] * 129},
        {"prompt": ["x"] * 9, "n": 16}, {"prompt": ["x"] * 9, "n": 1, "best_of": 16}, {"prompt_embeds": ["x"] * 129},
        {"prompt": ["x"] * 65, "prompt_embeds": ["x"] * 64},
    ],
)  # fmt: skip
def test_work_that_one_request_multiplies_has_a_bound(asked: dict[str, Any]) -> None:
    with pytest.raises(OpenAIHTTPException) as caught:
        check(Body(**asked), ServeConfig())
    assert caught.value.status_code == 400


@pytest.mark.parametrize(
    "asked",
    [
        {}, {"n": 16}, {"prompt": "x" * 1000}, {"prompt": list(range(1000))}, {"prompt": ["x"] * 128},
        {"prompt": ["x"] * 8, "n": 16}, {"prompt": [], "n": 1}, {"n": None, "best_of": None},
    ],
)  # fmt: skip
def test_what_is_within_it_passes(asked: dict[str, Any]) -> None:
    check(Body(**asked), ServeConfig())


USER = {"role": "user", "content": "hello"}


@pytest.mark.parametrize(
    "message",
    [{"content": "x"}, {"role": None, "content": "x"}, {"role": "user", "content": [[1]]},
     {"role": "assistant", "tool_calls": [1]}],
)  # fmt: skip
@pytest.mark.parametrize("kind", [ChatCompletionRequest, EmbeddingChatRequest])
def test_messages_that_vllm_would_stumble_over_are_refused(kind: Any, message: dict[str, Any]) -> None:
    with pytest.raises((OpenAIHTTPException, ValidationError)) as caught:
        check(kind(model="a", messages=[USER, message]), ServeConfig())
    assert isinstance(caught.value, ValidationError) or caught.value.status_code == 400


@pytest.mark.parametrize("kind", [ChatCompletionRequest, EmbeddingChatRequest])
def test_messages_in_parts_travel_to_a_replica(kind: Any) -> None:
    parts = [{"type": "text", "text": "hello"}]
    body = kind(model="a", messages=[USER, {"role": "user", "content": parts}])
    check(body, ServeConfig())
    assert pickle.loads(pickle.dumps(body)).messages[1]["content"] == parts


@pytest.mark.parametrize(
    ("failed", "code", "said"),
    [
        (VLLMValidationError("`tools` must not be empty", parameter="tools"), 400, "`tools` must not be empty"),
        (ValueError("x" * 5000), 400, "x" * 1000),
        (OpenAIHTTPException(404, "no such model", "NotFoundError"), 404, "no such model"),
        (RayTaskError("chat", "Traceback", TypeError("no array")).as_instanceof_cause(), 400, "no array"),
        (RayTaskError("chat", "Traceback", KeyError("role")).as_instanceof_cause(), 400, "A message has no role."),
        (RayTaskError("chat", "Traceback", KeyError("x")).as_instanceof_cause(), 500, "KeyError: 'x'"),
    ],
    ids=["vllm", "value", "ours", "of the request", "no role", "of the replica"],
)
def test_whatever_goes_wrong_is_a_line_in_openais_form(client: TestClient, failed: Exception, code: int, said: str):
    async def fails() -> None:
        raise failed

    client.app.add_api_route("/fails", fails)
    answer = client.get("/fails", headers={"Authorization": "Bearer sk-good"})
    assert (answer.status_code, answer.headers["content-type"]) == (code, "application/json")
    message = answer.json()["error"]["message"]
    assert said in message
    assert "Traceback" not in message
    assert len(message) <= 1000


def test_models_are_listed_as_vllm_serve_lists_them() -> None:
    metadata = {"model_id": "a", "input_modality": "text", "max_request_context_length": 1024, **facts("org/a")}
    found = card(SimpleNamespace(id="a", owned_by="us", permission=[], metadata=metadata)).model_dump()
    assert set(VLLMCard.model_fields) <= set(found)
    assert (found["root"], found["parent"], found["max_model_len"]) == ("org/a", None, 1024)
    assert abs(found["created"] - time.time()) < 3600
    assert found["metadata"] == {"model_id": "a", "input_modality": "text", "max_request_context_length": 1024}
    adapter = card(SimpleNamespace(id="a:french", owned_by="us", permission=[], metadata=metadata))
    assert adapter.parent == "a"
