"""Real vLLM on CPU. Every start costs both cores for many seconds: tests share them."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from pathlib import Path

import pytest

STATE = os.environ.get("ORCHESTRATOR_HOME", str(Path.home() / ".cache" / "orchestrator"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if importlib.util.find_spec("vllm") is None:
        for item in items:
            item.add_marker(pytest.mark.skip(reason="vLLM is not installed: pip install orchestrator[cpu]"))


@pytest.fixture(scope="session")
def state() -> str:
    """Where models are made once; graphs never go there."""
    return STATE


def leftovers(temporary: str = tempfile.gettempdir()) -> set[Path]:
    """What a replica may leave behind: shared memory, semaphores, sockets, and its folder."""
    shared = [p for p in Path("/dev/shm").iterdir() if p.name.startswith(("psm_", "sem.mp-"))]
    files = Path(temporary).iterdir()
    return {*shared, *(p for p in files if p.is_socket() or p.name.startswith("orchestrator-serve-"))}


def shared_memory() -> set[str]:
    """Shared-memory segments of this machine."""
    return set(os.listdir("/dev/shm")) if Path("/dev/shm").is_dir() else set()
