"""Real vLLM on CPU. Every start costs both cores for many seconds: tests share them."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from orchestrator import paths
from tests.engine.ask import Server

STATE = paths.home()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if importlib.util.find_spec("vllm") is None:
        for item in items:
            item.add_marker(pytest.mark.skip(reason="vLLM is not installed: pip install orchestrator[cpu]"))


@pytest.fixture(scope="session")
def state() -> str:
    """Where models are made once; graphs never go there."""
    return STATE


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    found = Server()
    yield found
    found.close()


@pytest.fixture
def starts(server: Server) -> Callable[..., list[dict[str, Any]]]:
    """Ask for starts of a model; they run in one process, which is a fork for this request."""
    return server.ask
