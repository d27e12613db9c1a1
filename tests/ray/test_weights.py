"""Models that travel between real Ray nodes: read once, and whole on each, whoever dies and whatever is wrong."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from pyarrow import fs
from ray.cluster_utils import Cluster
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.bench.origin import Origin, serving
from orchestrator.errors import ConfigError, EngineStartError, ModelError
from orchestrator.fleet.fleet import Fleet
from orchestrator.fleet.plan import make_plan
from orchestrator.graph_cache.restore_result import Outcome
from orchestrator.graph_cache.settings import CacheSettings
from orchestrator.graph_cache.store import open_files
from orchestrator.weights import directory as directories
from orchestrator.weights import listing as listings
from orchestrator.weights import node
from orchestrator.weights.listing import look
from orchestrator.weights.settings import Bounds, Weights, weights_of
from tests.ray.conftest import SHAPE
from tests.ray.ray_nodes import agents
from tests.unit.test_weights_store import files, make_model
from tests.waiting import HANG_S

NODES = 4
PIECE = 64 << 10
DISK = "NODE_DISK"  # each node's own


@pytest.fixture
def cluster(no_ray: None, tmp_path: Path) -> Iterator[Cluster]:
    def settings(number: int) -> dict[str, Any]:
        disk = {DISK: str(tmp_path / f"disk-{number}")}
        return {"num_cpus": 1, "object_store_memory": 80 << 20, "env_vars": disk, **agents()}

    found = Cluster(initialize_head=True, head_node_args=settings(0))
    for number in range(1, NODES):
        found.add_node(**settings(number))
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
    bounds = Bounds(f"${DISK}/weights", 1 << 30, 2, 4, HANG_S)
    return Weights(look("m", str(model), PIECE), bounds, str(tmp_path / "key"), f"w-{tmp_path.name}")


def on(node_id: str, weights: Weights) -> Any:
    """Bring a model to a node; returns the call."""

    def bring() -> tuple[dict[str, Any], str]:  # local, so that it travels by value
        return ray.get(node.here(weights.namespace).bring.remote(weights)).as_dict(), weights.path

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


def test_a_bucket_is_an_origin_and_a_replica_waits_for_it(
    local_ray: None, s3: str, make_app, cache: CacheSettings, tmp_path: Path
) -> None:
    model = make_model(tmp_path / "model", {"a.safetensors": 1 << 20})
    (model / "config.json").write_text('{"num_attention_heads": 4}')
    files_there, root = open_files(s3)
    files_there.create_dir(f"{root}/m")
    fs.copy_files(str(model), f"{root}/m", destination_filesystem=files_there)
    uri = s3.replace("graphs/prefix", "graphs/prefix/m")
    words = ("engine=fake", "model=local_path", "model.name=m", f"model.id='{uri}'", "cold_start.share_weights=true")
    app = make_app(*words, f"state_dir={tmp_path}", "replicas=2", "cold_start.preload=false")
    weights = weights_of(app)
    assert weights is not None
    plan = make_plan(app, SHAPE, model=weights.path, scratch=str(tmp_path / "scratch"))
    with Fleet(plan, cache, HANG_S, weights=replace(weights, needed="it is not asked for here")) as fleet:
        first, second = fleet.start()
        assert files(Path(weights.path)) == files(model)
    assert (first.model["origin_bytes"], second.model["disk_bytes"]) == (weights.listing.bytes, weights.listing.bytes)
    assert {"model files", "model transfer"} <= {phase.name for phase in first.phases}
    assert not any("secret" in text for text in map(str, (weights.path, first.model, *Path(weights.folder).iterdir())))
    with pytest.raises(ConfigError, match="divide"):
        weights_of(make_app(*words, "engine.tensor_parallel_size=3"))
    files_there.delete_file(f"{root}/m/config.json")
    with pytest.raises(ModelError, match=r"No config\.json in s3://\*\*\*@graphs"):
        weights_of(app)


def test_a_model_that_does_not_come_fails_a_start_with_its_cause(
    local_ray: None, make_app, cache: CacheSettings, tmp_path: Path
) -> None:
    model = make_model(tmp_path / "model", {"a.safetensors": 1 << 20})
    (model / "config.json").write_text("{}")
    words = ("engine=fake", "model=local_path", "model.name=m", f"model.id={model}", "cold_start.share_weights=true")
    app = make_app(*words, f"state_dir={tmp_path}", "replicas=1", "cold_start.preload=false")
    weights = weights_of(app)
    assert weights is not None
    (model / "a.safetensors").unlink()
    plan = make_plan(app, SHAPE, model=weights.path, scratch=str(tmp_path / "scratch"))
    with Fleet(plan, cache, HANG_S, weights=weights) as fleet, pytest.raises(EngineStartError) as caught:
        fleet.start()
    assert caught.value.phase == "model files"
    assert "a.safetensors" in caught.value.cause


class Gated(Origin):
    """Sends weights only once it is told to."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, 0)
        self.open = threading.Event()

    def pace(self, count: int) -> None:
        if count > 1000:
            assert self.open.wait(HANG_S)
        super().pace(count)


def test_graphs_are_compiled_while_the_weights_are_on_their_way(
    local_ray: None, make_app, cache: CacheSettings, tmp_path: Path
) -> None:
    model = make_model(tmp_path / "model", {"a.safetensors": listings.SMALL + 5000})
    (model / "config.json").write_text("{}")
    origin, said = Gated(model), []

    def progress(who: str, what: str) -> None:
        said.append((who, what))
        if (who, what) == ("compile", "ready"):
            origin.open.set()

    with serving(origin) as uri:
        words = (
            "engine=fake",
            "model=local_path",
            "model.name=m",
            f"model.id='{uri}'",
            "cold_start.share_weights=true",
        )
        app = make_app(*words, f"state_dir={tmp_path}", "replicas=2", "cold_start.preload=false")
        weights = weights_of(app)
        assert weights is not None
        plan = make_plan(app, SHAPE, model=weights.path, scratch=str(tmp_path / "scratch"))
        with Fleet(plan, cache, HANG_S, progress, weights) as fleet:
            first, second = fleet.start()
    assert [r.receipt.outcome for r in (first, second)] == [Outcome.hit, Outcome.hit]
    assert first.phases[1].name == "compile ahead"
    assert sum(phase.seconds for phase in first.phases) == pytest.approx(first.first_token_s)
    assert files(Path(weights.path)) == files(model)
    assert not list((tmp_path / "scratch").glob("*-compile"))
    again = replace(weights, needed="its weights are quantised (config.json)")
    with Fleet(plan, cache, HANG_S, progress, again) as fleet:
        said.clear()
        fleet.start()
    assert "compile" not in {who for who, _ in said}
