"""The Ray cluster under a run: start one of our own, or join one; leave nothing of ours behind."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil
import ray

from orchestrator.cluster import ray_start
from orchestrator.cluster.shape import ClusterShape, existing_shape, local_shape
from orchestrator.config import ClusterConfig, ClusterKind
from orchestrator.errors import ConfigError
from orchestrator.progress import Say


@contextmanager
def connected(
    cluster: ClusterConfig,
    say: Say = lambda who, what: None,
    check: Callable[[ClusterShape], None] = lambda shape: None,
) -> Iterator[ClusterShape]:
    """A Ray for the length of a run; yields its shape.

    Args:
        cluster: what the user configured.
        say: told what is waited for.
        check: called with the shape as soon as it is known: of a local Ray before it starts.

    Raises:
        Exception: what `check` raises.
        ClusterError: a local Ray did not start.
        ConfigError: an existing cluster is asked for and cannot be reached.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    if cluster.kind is ClusterKind.existing:
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
        check(shape := local_shape(cluster))
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
        if cluster.kind is ClusterKind.existing:
            check(shape := existing_shape())
        yield shape
    finally:
        ray.shutdown()
        if cluster.kind is ClusterKind.local:
            ray_start.end_children(before, patience_s=5.0)  # a caller that looks then finds none


def _reach(address: str) -> None:
    """Fail in seconds where Ray would try for minutes: is anything listening at host:port?"""
    host, _, port = address.rpartition(":")
    if host and port.isdigit() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=5.0).close()
