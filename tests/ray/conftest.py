"""A local Ray for the tests that ask for one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from orchestrator import cluster
from orchestrator.config import AppConfig
from orchestrator.fleet import Fleet
from orchestrator.graph_cache import bundle, registry
from orchestrator.graph_cache.client import CacheSettings
from orchestrator.plan import ClusterShape, Node, make_plan

SHAPE = ClusterShape((Node(cpus=8),))


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    app = AppConfig()
    with cluster.connected(app.cluster, SHAPE):
        yield


@pytest.fixture
def cache(local_ray: None, tmp_path: Path) -> Iterator[CacheSettings]:
    """A registry of its own for each test."""
    key_file = str(tmp_path / "signing.key")
    bundle.signing_key(key_file)
    store = str(tmp_path / "graphs")
    handle = registry.connect(f"test-{tmp_path.name}", store, 1.0, 60.0, 64 << 20)
    limits = bundle.Limits(1 << 20, 100)
    yield CacheSettings(handle, store, key_file, limits, 20.0, 1.0, str(tmp_path / "node"), 16 << 20)
    ray.kill(handle)


@pytest.fixture
def make_fleet(make_app, cache: CacheSettings, tmp_path: Path):
    """A fleet of fake engines; `args` reach the fake."""

    def make(replicas: int = 2, settings: CacheSettings = cache, timeout: float = 10.0, **args: object) -> Fleet:
        extra = [f"+engine.extra.{name}={value}" for name, value in args.items()]
        app = make_app("engine=fake", "model=tiny_llama", f"replicas={replicas}", *extra)
        app.engine.start_timeout_s = timeout
        plan = make_plan(app, SHAPE, model="m", heads=None, scratch=str(tmp_path / "scratch"))
        return Fleet(plan, settings, placement_timeout_s=5.0)

    return make
