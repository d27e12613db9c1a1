"""Shared by all tiers. Nothing here starts Ray or vLLM."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hypothesis import HealthCheck, settings

from orchestrator.config import AppConfig, load
from tests import footprint, parts, whole

GIVEN = dict(os.environ)  # before vLLM and torch are imported, which set variables of their own
ROOT = Path(__file__).resolve().parents[1]
CONF = str(ROOT / "conf")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")  # a slow machine takes as long as it takes
footprint.put_mark()
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background, and in what we would interrupt


def name_of(item: pytest.Item) -> str:
    """A test's name below tests/, as tests/whole.py and tests/parts.py have it."""
    return item.nodeid.removeprefix("tests/")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        tier = Path(item.fspath).parent.name
        if tier in ("ray", "engine", "gpu"):
            item.add_marker(tier)
    if os.environ.get("ORCHESTRATOR_TEST_ALL") != "1":
        named = tuple(word for word in config.args if "::" in word)
        long = [item for item in items if whole.is_long(name_of(item)) and not item.nodeid.startswith(named or "?")]
        if long:
            config.hook.pytest_deselected(items=long)
            items[:] = [item for item in items if item not in long]
    order = [*parts.FIRST, *parts.THEN]
    items.sort(key=lambda item: next((i for i, name in enumerate(order) if name_of(item).startswith(name)), len(order)))


def pytest_runtest_protocol(item: pytest.Item) -> bool | None:
    """An engine test that the budget does not reach is written down as not run; it is neither passed nor skipped."""
    late = time.time() > float(os.environ.get("ORCHESTRATOR_TEST_UNTIL", "inf"))
    if not late or item.get_closest_marker("engine") is None:
        return None
    with open(os.environ["ORCHESTRATOR_TEST_NOT_RUN"], "a") as file:
        file.write(f"{name_of(item)}\n")
    return True


@pytest.fixture
def mine() -> Iterator[footprint.Footprint]:
    """What the test starts; it has to be gone when the test asks."""
    with footprint.Footprint() as found:
        yield found


@pytest.fixture
def make_app(tmp_path: Path):
    """Compose and check a configuration as a job would."""

    def make(*overrides: str) -> AppConfig:
        with initialize_config_dir(CONF, version_base="1.3"):
            cfg = compose("config", overrides=[f"state_dir={tmp_path}", *overrides])
            return load(cfg)

    return make
