"""The graph cache over several Ray nodes: their copies, and the loss of the node that owns what is served."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
import ray
from ray._private.internal_api import memory_summary
from ray.cluster_utils import Cluster

from orchestrator import zygote
from orchestrator.fleet import node_warmer
from orchestrator.graph_cache import registry_actor
from orchestrator.graph_cache.registry import Registry
from orchestrator.graph_cache.restore_result import Outcome
from orchestrator.graph_cache.settings import CacheSettings
from orchestrator.weights.listing import look
from orchestrator.weights.settings import Bounds, Weights
from tests.ray.ray_nodes import agents
from tests.ray.test_zygote import PRELOAD
from tests.unit.test_weights_store import files, make_model
from tests.waiting import HANG_S, wait_for


@pytest.fixture
def cluster(no_ray: None) -> Iterator[Cluster]:
    head = {"num_cpus": 4, "object_store_memory": 100 << 20, **agents()}
    found = Cluster(initialize_head=True, head_node_args=head)
    ray.init(address=found.address, log_to_driver=False)
    yield found
    ray.shutdown()
    found.shutdown()


@pytest.fixture
def local_ray(cluster: Cluster) -> None:
    """The fixtures of conftest.py then run in this cluster."""


def test_the_owners_node_is_removed(cluster: Cluster, make_fleet, cache: CacheSettings, tmp_path: Path) -> None:
    def add() -> object:
        added = cluster.add_node(num_cpus=1, object_store_memory=100 << 20, resources={"registry": 1}, **agents())
        cluster.wait_for_nodes(timeout=HANG_S)
        return added

    node = add()
    handle = (
        ray.remote(Registry)
        .options(
            name=registry_actor.NAME,
            namespace=f"there-{tmp_path.name}",
            lifetime="detached",
            num_cpus=0,
            max_restarts=-1,
            max_task_retries=3,
            resources={"registry": 1},
        )
        .remote(cache.store, HANG_S)
    )
    settings = replace(cache, registry=handle)
    where = ray.get(handle.__ray_call__.remote(lambda _: ray.get_runtime_context().get_node_id()))
    with make_fleet(replicas=2, settings=settings) as fleet:
        assert [r.receipt.outcome for r in fleet.start()] == [Outcome.compiled, Outcome.hit]
    cluster.remove_node(node)
    add()
    assert ray.get(handle.__ray_call__.remote(lambda _: ray.get_runtime_context().get_node_id())) != where
    other = replace(settings, node_folder=str(tmp_path / "another node"))
    with make_fleet(replicas=2, settings=other) as fleet:
        found = [r.receipt for r in fleet.start()]
    assert [(r.outcome, r.source) for r in found] == [(Outcome.hit, "memory"), (Outcome.hit, "node")]
    ray.kill(handle)


def test_two_hundred_bundles_come_and_go_and_nothing_stays(cluster: Cluster, tmp_path: Path) -> None:
    """20 MB each, through an object store of 100 MB: only a bounded part is held, and evicted entries free theirs."""
    handle = registry_actor.connect(f"many-{tmp_path.name}", str(tmp_path / "graphs"), HANG_S, HANG_S, 45 << 20)

    def resident(_: object) -> int:  # local, so that it travels by value
        return int(psutil.Process().memory_info().rss)

    data = np.zeros(20 << 20, dtype=np.uint8)
    rss = 0
    for i in range(200):
        key = f"key-{i}"
        lead = ray.get(handle.acquire.remote(key, {}, "a", 1.0))
        assert ray.get(handle.publish.remote(key, lead["generation"], "a", {"factors": {}}, data))
        answer = ray.get(handle.acquire.remote(key, {}, "b", 1.0))
        assert len(ray.get(answer["ref"][0])) == 20 << 20
        del answer
        assert ray.get(handle.evict.remote(key))
        if i == 20:
            rss = ray.get(handle.__ray_call__.remote(resident))
    assert ray.get(handle.held_bytes.remote()) == 0
    assert ray.get(handle.__ray_call__.remote(resident)) < rss + (60 << 20)
    assert list((tmp_path / "graphs").iterdir()) == []
    summary = partial(memory_summary, cluster.address, stats_only=True)
    wait_for(lambda: "Plasma memory usage 0 MiB" in summary(), summary)  # Ray frees objects in its own time
    ray.kill(handle)


def test_a_node_is_made_ready_before_it_is_asked(
    cluster: Cluster, make_fleet, cache: CacheSettings, tmp_path: Path
) -> None:
    with make_fleet(replicas=1) as fleet:
        key = fleet.start()[0].receipt.key
    cluster.add_node(num_cpus=1, object_store_memory=100 << 20, resources={"new": 1}, **agents())
    cluster.wait_for_nodes(timeout=HANG_S)
    (node,) = [n["NodeID"] for n in ray.nodes() if "new" in n["Resources"]]
    models = [make_model(tmp_path / name, {"a.safetensors": 5}) for name in ("one", "other")]
    bounds = Bounds(str(tmp_path / "models"), 1 << 30, 2, 4, HANG_S)
    weights = [Weights(look("m", str(m), 1 << 20), bounds, str(tmp_path / "key"), "test-nodes") for m in models]
    (done,) = node_warmer.make_ready([node], cache, PRELOAD, [key, "unknown"], weights=weights).values()
    assert ray.get(done, timeout=HANG_S) == 1
    for one, model in zip(weights, models, strict=True):
        wait_for(lambda one=one, model=model: Path(one.path).is_dir() and files(Path(one.path)) == files(model))
    assert ray.get(cache.registry.offer.remote("unknown")) is None

    def born() -> bool:
        return getattr(sys, "born_of_a_zygote", False)

    options = {"py_executable": zygote.py_executable(sys.executable, PRELOAD)}
    task = ray.remote(born).options(num_cpus=0, resources={"new": 0.1}, runtime_env=options)
    assert ray.get(task.remote(), timeout=HANG_S)
    with make_fleet(replicas=1) as fleet:  # its node folder is the cache's, as on the new node
        receipt = fleet.start()[0].receipt
    assert (receipt.outcome, receipt.source) == (Outcome.hit, "node")
