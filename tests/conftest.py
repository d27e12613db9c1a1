"""Shared by all tiers. Nothing here starts Ray or vLLM."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from orchestrator.config import AppConfig, load

ROOT = Path(__file__).resolve().parents[1]
CONF = str(ROOT / "conf")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background, and in what we would interrupt


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        tier = Path(item.fspath).parent.name
        if tier in ("ray", "engine", "gpu"):
            item.add_marker(tier)


@pytest.fixture
def make_app(tmp_path: Path):
    """Compose and check a configuration as a job would."""

    def make(*overrides: str) -> AppConfig:
        with initialize_config_dir(CONF, version_base="1.3"):
            cfg = compose("config", overrides=[f"state_dir={tmp_path}", *overrides])
            return load(cfg)

    return make
