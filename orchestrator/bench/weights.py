"""A model on several Ray nodes of this machine: what its origin sends, and when the last node has it.

Both ways are measured in one run: the model travels (`share`), or each node reads the origin for itself (`alone`).
"""

from __future__ import annotations

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
from orchestrator.cluster import provenance, ray_start
from orchestrator.config import AppConfig
from orchestrator.progress import Say
from orchestrator.weights import node
from orchestrator.weights.listing import look
from orchestrator.weights.settings import Weights, bounds_of

_DISK = "ORCHESTRATOR_BENCH_DISK"  # each node's own
_FILES = 4  # of weights
_WAYS = ("share", "alone")


def measure(app: AppConfig, say: Say) -> BenchResult:
    """For each number of nodes: what the origin sent, and seconds until the first and the last node have the model."""
    bench = app.bench
    folder = Path(tempfile.mkdtemp(prefix="orchestrator-bench-"))
    rows: list[dict[str, Any]] = []
    try:
        _make_model(folder / "origin", bench.sizes_mib[0] << 20)
        for nodes in bench.nodes:
            with _several(nodes, folder, app.cluster.object_store_mib << 20):
                for turn in range(bench.rounds):
                    for way in _WAYS if turn % 2 == 0 else _WAYS[::-1]:
                        say("bench", f"{nodes} nodes, round {turn}, {way}")
                        row = _one(app, folder, way)
                        rows.append({"nodes": nodes, "round": turn, "way": way, **row})
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    summary = {
        "mib": bench.sizes_mib[0],
        "origin_mb_per_s": bench.origin_mb_per_s,
        "origin_reads": _medians(rows, "origin_reads"),
        "first_s": _medians(rows, "first_s"),
        "last_s": _medians(rows, "last_s"),
        "again_s": _medians(rows, "again_s"),
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
