"""A local Ray for the tests that ask for one; all of a worker's tests share it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import ray
from hypothesis import settings

from orchestrator.cluster import connect, ray_start
from orchestrator.cluster.shape import ClusterShape
from orchestrator.cluster.shape import Node as PlanNode
from orchestrator.config import ClusterConfig
from orchestrator.engine.vllm import fork_context
from orchestrator.fleet.fleet import Fleet
from orchestrator.fleet.plan import make_plan
from orchestrator.graph_cache import bundle, registry_actor
from orchestrator.graph_cache.settings import CacheSettings
from orchestrator.progress import Say
from tests import s3_server
from tests.ray import ray_nodes
from tests.waiting import HANG_S

SHAPE = ClusterShape((PlanNode(cpus=8),))
settings.register_profile("ray-short", max_examples=200, deadline=None)
settings.register_profile("ray-all", max_examples=2000, deadline=None)


@pytest.fixture(scope="session", autouse=True)
def ray_folder() -> Iterator[None]:
    """Ray's files, its "current cluster" among them, are this worker's own. Short, for sockets."""
    folder = tempfile.mkdtemp(prefix="r-", dir="/tmp")
    os.environ.update({"RAY_TMPDIR": folder, "RAY_prestart_worker_first_driver": "0", **ray_nodes.patience()})
    os.environ.pop("RAY_ADDRESS", None)
    with ray_start.told_raylets():  # for Cluster
        yield
    shutil.rmtree(folder, ignore_errors=True)


class SharedRay:
    """A process is connected to one Ray at a time: this one ends before a test has another."""

    def __init__(self) -> None:
        self._running = ExitStack()
        self._runs = False

    def start(self) -> None:
        if not self._runs:
            self._running.enter_context(connect.connected(ClusterConfig(num_cpus=int(SHAPE.nodes[0].cpus), num_gpus=0)))
            self._runs = True

    def end(self) -> None:
        self._runs = False
        self._running.close()


@pytest.fixture(scope="session")
def shared_ray(ray_folder: None) -> Iterator[SharedRay]:
    found = SharedRay()
    yield found
    found.end()


@pytest.fixture
def local_ray(shared_ray: SharedRay) -> None:
    shared_ray.start()


@pytest.fixture
def no_ray(shared_ray: SharedRay) -> Iterator[None]:
    """For a test that starts a Ray of its own."""
    shared_ray.end()
    yield
    ray.shutdown()


@pytest.fixture
def cache(local_ray: None, tmp_path: Path) -> Iterator[CacheSettings]:
    """A registry of its own for each test. Its lease is kept on any machine; who needs one that ends asks for it."""
    key_file = str(tmp_path / "signing.key")
    bundle.signing_key(key_file)
    store = str(tmp_path / "graphs")
    handle = registry_actor.connect(f"test-{tmp_path.name}", store, HANG_S, HANG_S, 64 << 20)
    limits = bundle.Limits(1 << 20, 100)
    yield CacheSettings(handle, store, key_file, limits, HANG_S, HANG_S, str(tmp_path / "node"), 16 << 20)
    ray.kill(handle)


@pytest.fixture
def make_fleet(make_app, cache: CacheSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A fleet of fake engines, forked from a zygote as vLLM's are; `args` reach the fake."""
    monkeypatch.setattr(fork_context, "MODULE", "tests.ray.fake_zygote_imports")

    def make(
        replicas: int = 2,
        settings: CacheSettings = cache,
        timeout: float = HANG_S,
        place: float = HANG_S,
        cpus: float = 1.0,
        progress: Say | None = None,
        **args: object,
    ) -> Fleet:
        extra = [f"+engine.extra.{name}={value}" for name, value in args.items()]
        app = make_app("engine=fake", "model=tiny_llama", f"replicas={replicas}", *extra)
        app.engine.start_timeout_s, app.engine.cpus_per_rank = timeout, cpus
        plan = make_plan(app, SHAPE, model="m", scratch=str(tmp_path / "scratch"))
        forked = tuple(replace(r, spec=replace(r.spec, preload=True)) for r in plan.replicas)
        return Fleet(replace(plan, replicas=forked), settings, place, progress)

    return make


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """A URI on a server of our own, on loopback."""
    with s3_server.running() as port:
        yield s3_server.uri(port, "graphs/prefix")
