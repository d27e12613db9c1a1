"""What a cluster's nodes offer."""

from __future__ import annotations

import os
from dataclasses import dataclass

import ray

from orchestrator.cluster import machine
from orchestrator.config import AppConfig, ClusterConfig, Device, EngineConfig
from orchestrator.errors import ConfigError


@dataclass(frozen=True)
class Node:
    """What one node of the cluster offers."""

    cpus: float
    gpus: float = 0.0


@dataclass(frozen=True)
class ClusterShape:
    """The nodes of the cluster."""

    nodes: tuple[Node, ...]

    def total(self, device: Device) -> float:
        """All CPUs or all GPUs."""
        return sum(node.gpus if device is Device.gpu else node.cpus for node in self.nodes)

    def largest(self, device: Device) -> float:
        """The CPUs or GPUs of the node that has most."""
        return max((node.gpus if device is Device.gpu else node.cpus for node in self.nodes), default=0.0)


def rank_resources(engine: EngineConfig) -> dict[str, float]:
    """What Ray keeps for each tensor-parallel rank: one resource, and how much of it."""
    return {"GPU": 1.0} if engine.device is Device.gpu else {"CPU": engine.cpus_per_rank}


def check_room(app: AppConfig, shape: ClusterShape) -> None:
    """Is the cluster large enough for all replicas?

    Raises:
        ConfigError: it is not.
    """
    device, size = app.engine.device, app.engine.tensor_parallel_size
    ((resource, each),) = rank_resources(app.engine).items()
    need, have = app.replicas * size * each, shape.total(device)
    if need > have:
        smaller = "replicas or engine.tensor_parallel_size"
        raise ConfigError(
            f"{app.replicas} replicas x tensor_parallel_size={size} need {need:g} {resource}s, "
            f"the cluster has {have:g}.",
            where="engine.tensor_parallel_size",
            hint=f"Lower {smaller}." if device is Device.gpu else f"Lower {smaller}, or engine.cpus_per_rank.",
        )
    if device is Device.cpu and size * each > shape.largest(device):
        raise ConfigError(
            f"engine.tensor_parallel_size={size} needs {size * each:g} CPUs on one node; the largest has "
            f"{shape.largest(device):g}.",
            where="engine.tensor_parallel_size",
            hint="vLLM's CPU ranks have to share a node: lower it, or engine.cpus_per_rank.",
        )


def local_shape(cluster: ClusterConfig) -> ClusterShape:
    """What a local Ray will offer, known before it starts."""
    cpus = cluster.num_cpus if cluster.num_cpus is not None else machine.cpus()
    gpus = cluster.num_gpus if cluster.num_gpus is not None else visible_gpus()
    return ClusterShape((Node(cpus, gpus),))


def existing_shape() -> ClusterShape:
    """What the nodes of the joined cluster offer."""
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return ClusterShape(tuple(Node(r.get("CPU", 0.0), r.get("GPU", 0.0)) for r in alive))


def visible_gpus() -> int:
    """GPUs by NVIDIA's device files and CUDA_VISIBLE_DEVICES; no CUDA is initialised."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([part for part in visible.split(",") if part.strip() not in ("", "-1")])
    return len([name for name in os.listdir("/dev") if name.startswith("nvidia") and name[6:].isdigit()])
