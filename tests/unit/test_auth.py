"""What passes the service's gate, and what is refused in OpenAI's form."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from orchestrator.errors import ConfigError
from orchestrator.serve.auth import Gate, read_keys


async def echo(request: Request) -> PlainTextResponse:
    return PlainTextResponse(await request.body())


def client(keys: list[str], max_body: int = 100) -> TestClient:
    app = Starlette(routes=[Route("/v1/x", echo, methods=["POST"]), Route("/health", echo)])
    app.add_middleware(Gate, keys=keys, max_body=max_body)
    return TestClient(app)


@pytest.fixture
def keys(tmp_path: Path) -> list[str]:
    (tmp_path / "keys").write_text("first key\n\nsk-second\n")
    return read_keys(str(tmp_path / "keys"), "0.0.0.0")


@pytest.mark.parametrize("key", ["first key", "sk-second"])
def test_every_key_opens(keys: list[str], key: str) -> None:
    answer = client(keys).post("/v1/x", content=b"hello", headers={"Authorization": f"Bearer {key}"})
    assert (answer.status_code, answer.text) == (200, "hello")


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer sk-", "Basic sk-second", "sk-second", "Bearer first"])
def test_anything_else_does_not(keys: list[str], header: str | None) -> None:
    answer = client(keys).post("/v1/x", headers={} if header is None else {"Authorization": header})
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["error"]["code"] == "invalid_api_key"


def test_health_needs_no_key(keys: list[str]) -> None:
    assert client(keys).get("/health").status_code == 200


@given(size=st.integers(0, 200), said=st.booleans())
def test_a_body_passes_whole_or_not_at_all(size: int, said: bool) -> None:
    body = b"x" * size
    answer = client([]).post("/v1/x", content=body if said else iter([body[:50], body[50:]]))
    if size <= 100:
        assert answer.content == body
    else:
        assert answer.status_code == 413
        assert answer.json()["error"]["code"] == "request_too_large"


def test_open_to_others_without_keys_is_refused() -> None:
    assert read_keys(None, "127.0.0.1") == []
    with pytest.raises(ConfigError, match="no API keys") as caught:
        read_keys(None, "0.0.0.0")
    assert caught.value.where == "serve.api_keys_file"


def test_a_file_without_keys_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n\n")
    for file in ("empty", "missing"):
        with pytest.raises(ConfigError, match=file):
            read_keys(str(tmp_path / file), "127.0.0.1")
