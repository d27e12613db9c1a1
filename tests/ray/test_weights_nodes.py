"""Models that travel between real Ray nodes: read once, and whole on each, whoever dies and whatever is wrong."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.errors import ModelError
from orchestrator.weights import directory as directories
from orchestrator.weights import node
from orchestrator.weights.listing import look
from orchestrator.weights.settings import Bounds, Weights
from tests.ray.conftest import SharedRay
from tests.ray.ray_nodes import agents
from tests.unit.test_weights_store import files, make_model
from tests.waiting import HANG_S

NODES = 4
PIECE, PART = 64 << 10, 24 << 10
DISK = "NODE_DISK"  # each node's own


@pytest.fixture(scope="module")
def cluster(shared_ray: SharedRay, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Shared by all tests here: the last one kills a node."""
    shared_ray.end()
    disks = tmp_path_factory.mktemp("disks")

    def settings(number: int) -> dict[str, Any]:
        disk = {DISK: str(disks / str(number))}
        return {"num_cpus": 1, "object_store_memory": 80 << 20, "env_vars": disk, **agents()}

    found = Cluster(initialize_head=True, head_node_args=settings(0))
    for number in range(1, NODES):
        found.add_node(wait=False, **settings(number))
    ray.init(address=found.address, log_to_driver=False)
    found.wait_for_nodes(timeout=HANG_S)
    yield found
    ray.shutdown()
    found.shutdown()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_model(tmp_path / "model", {"a.safetensors": 3 << 20, "b.safetensors": (2 << 20) + 7, "t/x.json": 9})


@pytest.fixture
def weights(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Weights:
    bounds = Bounds(f"${DISK}/{tmp_path.name}", 1 << 30, 2, 4, HANG_S)
    listing = replace(look("m", str(model), PIECE), part_bytes=PART)  # as of a large model
    return Weights(listing, bounds, str(tmp_path / "key"), f"w-{tmp_path.name}")


def on(node_id: str, weights: Weights) -> Any:
    """Bring a model to a node; returns the call."""

    def bring() -> tuple[dict[str, Any], str]:  # local, so that it travels by value
        return asdict(ray.get(node.here(weights.namespace).bring.remote(weights))), weights.path

    there = NodeAffinitySchedulingStrategy(node_id, soft=False)
    return ray.remote(bring).options(num_cpus=0, scheduling_strategy=there, max_retries=0).remote()


def ids() -> list[str]:
    return sorted(n["NodeID"] for n in ray.nodes() if n["Alive"])


def everywhere(weights: Weights) -> list[tuple[dict[str, Any], str]]:
    return ray.get([on(name, weights) for name in ids()], timeout=HANG_S)


def test_the_origin_is_read_once_for_all_nodes(cluster: Cluster, weights: Weights, model: Path) -> None:
    found = everywhere(weights)
    size = weights.listing.bytes
    assert sum(b["origin_bytes"] for b, _ in found) == size
    assert [b["origin_bytes"] + b["peer_bytes"] for b, _ in found] == [size] * NODES
    assert len({path for _, path in found}) == NODES
    assert all(files(Path(path)) == files(model) for _, path in found)
    again = everywhere(weights)
    assert [b["disk_bytes"] for b, _ in again] == [size] * NODES
    (model / "a.safetensors").unlink()  # whoever comes later does without the origin
    disk = Path(found[0][1])
    (disk / "a.safetensors").write_bytes(b"")
    (disk / "config.json").write_bytes(b"x" * 17)
    healed = everywhere(weights)
    assert files(disk) == files(Path(found[1][1]))
    assert [len(b["refused"]) for b, _ in healed].count(0) == NODES - 1
    assert sum(b["peer_bytes"] for b, _ in healed) == (3 << 20) + 17
    assert not any(b["origin_bytes"] for b, _ in healed)


def test_a_byte_that_is_wrong_at_a_peer_is_refused(cluster: Cluster, weights: Weights, model: Path) -> None:
    first, *others = ids()
    _, path = ray.get(on(first, weights), timeout=HANG_S)
    file = Path(path) / "b.safetensors"
    chance = random.Random(1)
    data = bytearray(file.read_bytes())
    wrong = chance.sample(range(len(data)), 5)
    for at in wrong:
        data[at] ^= 1
    file.write_bytes(data)
    found = ray.get([on(name, weights) for name in others], timeout=HANG_S)
    assert all(files(Path(path)) == files(model) for _, path in found)
    refused = [what for b, _ in found for what in b["refused"]]
    assert refused
    assert all("b.safetensors" in what and f"node {first[:12]}" in what for what in refused)
    assert sum(b["origin_bytes"] for b, _ in found) <= PIECE * len({at // PIECE for at in wrong})


def test_a_restarted_directory_learns_what_is_where(cluster: Cluster, weights: Weights, model: Path) -> None:
    first, *others = ids()
    ray.get(on(first, weights), timeout=HANG_S)
    directory = ray.get_actor(f"{directories.NAME}{directories.CODE}", weights.namespace)
    calls = [on(name, weights) for name in others]
    ray.kill(directory, no_restart=False)
    found = ray.get(calls, timeout=HANG_S)
    assert all(files(Path(path)) == files(model) for _, path in found)


def test_an_origin_that_is_gone_is_told(cluster: Cluster, weights: Weights, model: Path) -> None:
    (model / "a.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model: .*a\.safetensors") as caught:
        everywhere(weights)
    assert caught.value.where == "model.id"


def test_a_node_that_is_killed_leaves_the_others_whole(cluster: Cluster, weights: Weights, model: Path) -> None:
    first, second, *_others = ids()
    head = ray.get_runtime_context().get_node_id()
    doomed = next(name for name in (first, second) if name != head)
    ray.get(on(doomed, weights), timeout=HANG_S)
    calls = [on(name, weights) for name in ids() if name != doomed]
    (process,) = [n for n in cluster.list_all_nodes() if n.node_id == doomed]
    cluster.remove_node(process, allow_graceful=False)
    found = ray.get(calls, timeout=HANG_S)
    assert all(files(Path(path)) == files(model) for _, path in found)
