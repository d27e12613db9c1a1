"""The Ray cluster under a run: start one of our own, or join one; leave nothing of ours behind."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import ray

from orchestrator import ray_start
from orchestrator.config import ClusterConfig, ClusterKind
from orchestrator.errors import ConfigError
from orchestrator.plan import ClusterShape, Node
from orchestrator.progress import Say


def local_shape(cluster: ClusterConfig) -> ClusterShape:
    """What a local Ray will offer, known before it starts."""
    cpus = cluster.num_cpus if cluster.num_cpus is not None else len(os.sched_getaffinity(0))
    gpus = cluster.num_gpus if cluster.num_gpus is not None else visible_gpus()
    return ClusterShape((Node(cpus, gpus),))


def existing_shape() -> ClusterShape:
    """What the nodes of the joined cluster offer."""
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return ClusterShape(tuple(Node(r.get("CPU", 0.0), r.get("GPU", 0.0)) for r in alive))


@contextmanager
def connected(
    cluster: ClusterConfig, shape: ClusterShape | None, say: Say = lambda who, what: None
) -> Iterator[ClusterShape]:
    """A Ray for the length of a run; yields its shape.

    Args:
        cluster: what the user configured.
        shape: for a local cluster, what it is to offer.
        say: told what is waited for.

    Raises:
        ClusterError: a local Ray did not start.
        ConfigError: an existing cluster is asked for and cannot be reached.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    if shape is None:
        address = cluster.address or os.environ.get("RAY_ADDRESS") or "auto"
        try:
            _reach(address)
            ray.init(address=address, namespace=cluster.namespace, log_to_driver=False)
        except (ConnectionError, OSError) as error:
            raise ConfigError(
                f"No Ray cluster at {address}: {error}.",
                where="cluster.address",
                hint="Start one with `ray start --head`; if it wants tokens, set RAY_AUTH_MODE=token here too.",
            ) from error
    else:
        os.environ.pop("RAY_ADDRESS", None)  # a local cluster is asked for: never join another by accident
        ray_start.start(
            say,
            namespace=cluster.namespace,
            num_cpus=int(shape.nodes[0].cpus),
            num_gpus=int(shape.nodes[0].gpus),
            object_store_memory=cluster.object_store_mib << 20,
            include_dashboard=False,
            log_to_driver=False,
        )
    try:
        yield shape or existing_shape()
    finally:
        ray.shutdown()
        if cluster.kind is ClusterKind.local:
            ray_start.end_children(before, patience_s=5.0)  # a caller that looks then finds none


def _reach(address: str) -> None:
    """Fail in seconds where Ray would try for minutes: is anything listening at host:port?"""
    host, _, port = address.rpartition(":")
    if host and port.isdigit() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=5.0).close()


def visible_gpus() -> int:
    """GPUs by NVIDIA's device files and CUDA_VISIBLE_DEVICES; no CUDA is initialised."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([part for part in visible.split(",") if part.strip() not in ("", "-1")])
    return len([name for name in os.listdir("/dev") if name.startswith("nvidia") and name[6:].isdigit()])
