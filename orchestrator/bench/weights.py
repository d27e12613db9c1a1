"""A model on several Ray nodes of this machine: what its origin sends, and when the last node has it.

Both ways are measured in one run: the model travels (`share`), or each node reads the origin for itself (`alone`).
Then larger clusters are simulated, with the time that the real directory takes for a question.
"""

from __future__ import annotations

import math
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.bench.origin import Origin, serving
from orchestrator.bench.result import BenchResult, Plot
from orchestrator.bench.simulator.swarm_model import Network, travel
from orchestrator.cluster import provenance, ray_start
from orchestrator.config import AppConfig
from orchestrator.progress import Say
from orchestrator.weights import directory, node
from orchestrator.weights.listing import File, Listing, look, piece_bytes
from orchestrator.weights.settings import Weights, bounds_of

_DISK = "ORCHESTRATOR_BENCH_DISK"  # each node's own
_FILES = 4  # of weights
_QUESTIONS, _ASKERS = 5000, 64
_WAYS = ("share", "alone")


def measure(app: AppConfig, say: Say) -> BenchResult:
    """For each number of nodes: what the origin sent, and seconds until the first and the last node have the model."""
    bench = app.bench
    folder = Path(tempfile.mkdtemp(prefix="orchestrator-bench-"))
    rows: list[dict[str, Any]] = []
    question_s = 0.0
    try:
        _make_model(folder / "origin", bench.sizes_mib[0] << 20)
        for nodes in bench.nodes:
            with _several(nodes, folder, app.cluster.object_store_mib << 20):
                for turn in range(bench.rounds):
                    for way in _WAYS if turn % 2 == 0 else _WAYS[::-1]:
                        say("bench", f"{nodes} nodes, round {turn}, {way}")
                        row = _one(app, folder, way)
                        rows.append({"nodes": nodes, "round": turn, "way": way, **row})
                say("bench", "questions to the directory")
                question_s = _question_s(app)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    summary = {
        "mib": bench.sizes_mib[0],
        "origin_mb_per_s": bench.origin_mb_per_s,
        "origin_reads": _medians(rows, "origin_reads"),
        "first_s": _medians(rows, "first_s"),
        "last_s": _medians(rows, "last_s"),
        "again_s": _medians(rows, "again_s"),
        "question_ms": round(1000 * question_s, 3),
        "simulated": [_simulated(app, nodes, question_s, say) for nodes in bench.simulated_nodes],
    }
    plots = (Plot("Until the last node has the model, seconds", "last_s", ("way",), "nodes"),)
    return BenchResult("weights", summary, rows, provenance.machine(), all(row["ok"] for row in rows), plots)


def _one(app: AppConfig, folder: Path, way: str) -> dict[str, Any]:
    origin = Origin(folder / "origin", app.bench.origin_mb_per_s * 1e6)
    name = f"bench-{way}-{time.monotonic_ns()}"
    with serving(origin) as uri:
        limits = replace(bounds_of(app.weights), folder=f"${_DISK}/{name}", max_bytes=1 << 50)
        weights = Weights(look("bench", uri, app.weights.piece_mib << 20), limits, str(folder / "key"), name)
        began = time.monotonic()
        found = _everywhere(weights, way == "alone")
        whole_s = time.monotonic() - began
        sent = origin.sent
        again = _everywhere(weights, way == "alone")
        for actor in ray.util.list_named_actors(all_namespaces=True):
            if actor["namespace"].startswith(name):
                with suppress(ValueError):
                    ray.kill(ray.get_actor(actor["name"], actor["namespace"]), no_restart=True)
    size = weights.listing.bytes
    for disk in folder.glob("disk-*"):
        shutil.rmtree(disk / name, ignore_errors=True)
    seconds = [brought["seconds"] for brought in found]
    return {
        "origin_reads": round(sent / size, 4),
        "peer_bytes": sum(brought["peer_bytes"] for brought in found),
        "first_s": round(min(seconds), 3),
        "last_s": round(max(seconds), 3),
        "whole_s": round(whole_s, 3),
        "again_s": round(max(brought["seconds"] for brought in again), 3),
        "ok": all(b["disk_bytes"] == size for b in again) and not any(b["refused"] for b in (*found, *again)),
    }


def _everywhere(weights: Weights, alone: bool) -> list[dict[str, Any]]:
    """Bring it to all nodes at once. `alone`: each among itself, so that nobody gives anybody anything."""

    def bring() -> dict[str, Any]:
        own = replace(weights, namespace=f"{weights.namespace}-{os.environ[_DISK]}") if alone else weights
        return asdict(ray.get(node.here(own.namespace).bring.remote(own)))

    names = [n["NodeID"] for n in ray.nodes() if n["Alive"]]
    task = ray.remote(bring)
    there = [NodeAffinitySchedulingStrategy(name, soft=False) for name in names]
    return list(ray.get([task.options(num_cpus=0, scheduling_strategy=s).remote() for s in there]))


def _question_s(app: AppConfig) -> float:
    """Seconds that the directory takes for a question, when many ask: their processes share this machine's cores."""
    listing = Listing("bench", "/nowhere", (File("a.safetensors", _QUESTIONS),), 1, 1)
    name = f"bench-questions-{time.monotonic_ns()}"
    asked = directory.connect(name)
    nodes = [f"n{number}" for number in range(_ASKERS)]
    ray.get([asked.join.remote(name, node, listing, bounds_of(app.weights), {}) for node in nodes])
    began, answered = time.monotonic(), 0
    calls = {asked.next.remote(name, node, 1.0): node for node in nodes}
    while calls and answered < _QUESTIONS:
        (call,), _ = ray.wait(list(calls), num_returns=1)
        node, (_, errand) = calls.pop(call), ray.get(call)
        answered += 1
        if errand is not None:
            calls[asked.next.remote(name, node, 1.0, (errand.piece, "digest"))] = node
    took = time.monotonic() - began
    ray.wait(list(calls), num_returns=len(calls), timeout=60.0)
    ray.kill(asked, no_restart=True)
    return took / answered


def _simulated(app: AppConfig, nodes: int, question_s: float, say: Say) -> dict[str, Any]:
    """A larger model that travels to more nodes."""
    bench, limits = app.bench, bounds_of(app.weights)
    network = Network(bench.simulated_node_mb_per_s * 1e6, bench.simulated_origin_mb_per_s * 1e6, question_s)
    size, part = int(bench.simulated_gb * 1e9), app.weights.piece_mib << 20
    piece = piece_bytes(size, part)
    say("bench", f"{nodes} nodes, simulated")
    found = travel(nodes, math.ceil(size / piece), piece, limits.streams, limits.readers, network)
    least = size / min(network.node_bytes_s, network.origin_bytes_s)
    return {
        "nodes": nodes,
        "origin_reads": round(found.read * piece / size, 2),
        "first_s": round(found.first_s, 1),
        "last_s": round(found.last_s, 1),
        "least_s": round(least, 1),
        "questions": found.questions,
    }


@contextmanager
def _several(nodes: int, folder: Path, object_store: int) -> Iterator[None]:
    """A Ray of several nodes on this machine, each with a folder of its own for its disk."""
    for name, value in ray_start.PATIENCE.items():
        os.environ.setdefault(name, value)

    def settings(number: int) -> dict[str, Any]:
        disk = folder / f"disk-{number}"
        disk.mkdir(exist_ok=True)
        own = {"env_vars": {_DISK: str(disk)}, **ray_start.agent_ports()}
        return {"num_cpus": 1, "object_store_memory": object_store, **own}

    with ray_start.told_raylets():
        cluster = Cluster(initialize_head=True, head_node_args=settings(0))
        try:
            for number in range(1, nodes):
                cluster.add_node(wait=False, **settings(number))
            ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
            cluster.wait_for_nodes(timeout=600.0)
            yield
        finally:
            ray.shutdown()
            cluster.shutdown()


def _make_model(folder: Path, size: int) -> None:
    """Random bytes: what matters is how many."""
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    for number in range(_FILES):
        with open(folder / f"model-{number}.safetensors", "wb") as file:
            left = size // _FILES
            while left:
                left -= file.write(os.urandom(min(left, 16 << 20)))


def _medians(rows: list[dict[str, Any]], column: str) -> dict[str, dict[str, float]]:
    """By way, then by number of nodes."""
    found: dict[str, dict[str, float]] = {}
    for way in _WAYS:
        for nodes in dict.fromkeys(row["nodes"] for row in rows):
            values = [row[column] for row in rows if (row["way"], row["nodes"]) == (way, nodes)]
            found.setdefault(way, {})[str(nodes)] = round(statistics.median(values), 4)
    return found
