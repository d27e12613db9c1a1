"""What all simulated runs share."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from tests.simulation.scenario import Graphs


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Graphs:
    return Graphs(tmp_path_factory.mktemp("graphs"))


@pytest.fixture(autouse=True)
def silent() -> Iterator[None]:
    """The registry tells of each lost lease and full disk; here there are thousands."""
    logger = logging.getLogger("orchestrator.registry")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(before)
