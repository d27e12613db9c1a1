"""The Ray cluster under a run: start one of our own, or join one; leave nothing of ours behind."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import psutil
import ray

from orchestrator.cluster import ray_start
from orchestrator.cluster.shape import ClusterShape, existing_shape, local_shape
from orchestrator.config import ClusterConfig, ClusterKind
from orchestrator.errors import ConfigError
from orchestrator.progress import Say

# Ray sets it for the driver of a submitted job.
_RAY_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
_REACH_S = 5.0


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
    check_asked(cluster)
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    if cluster.kind is ClusterKind.existing:
        address = _address(cluster)
        try:
            _reach(address)
            ray.init(address=address, namespace=cluster.namespace, log_to_driver=False)
        except (OSError, RuntimeError, ValueError) as error:
            raise ConfigError(
                f"No Ray cluster at {address}: {' '.join(str(error).split())}.",
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


def check_asked(cluster: ClusterConfig) -> None:
    """Does what is asked for go with where this process runs? Needs no Ray, and no time.

    Raises:
        ConfigError: a job of a cluster would start a Ray beside it, or the address is of another kind.
    """
    if cluster.kind is ClusterKind.local:
        if _RAY_JOB in os.environ:
            raise ConfigError(
                "This is a job of a Ray cluster, and would start a Ray of its own beside it.",
                where="cluster",
                hint="Set cluster=existing.",
            )
        return
    address = _address(cluster)
    if address.startswith(("http://", "https://")):
        raise ConfigError(
            f"{address} is a Ray dashboard's address, for `ray job submit`.",
            where="cluster.address" if cluster.address else "RAY_ADDRESS",
            hint="To join that cluster set cluster.address=auto on one of its nodes, or to its head's HOST:6379.",
        )
    if address == "local":
        raise ConfigError(
            "cluster=existing joins a Ray, and local is none.", where="cluster", hint="Set cluster=local."
        )


def _address(cluster: ClusterConfig) -> str:
    return cluster.address or os.environ.get("RAY_ADDRESS") or "auto"


def _reach(address: str) -> None:
    """Fail in seconds where Ray would try for minutes: does a server that is no web server listen at host:port?

    Raises:
        OSError: nothing listens there, or it is a web server, as a dashboard is.
    """
    host, _, port = address.rpartition(":")
    if not (host and port.isdigit() and "/" not in host):
        return
    with socket.create_connection((host.strip("[]"), int(port)), timeout=_REACH_S) as probe, suppress(TimeoutError):
        probe.sendall(b"GET / HTTP/1.1\r\nHost: ray\r\nConnection: close\r\n\r\n")
        if probe.recv(5) == b"HTTP/":
            raise OSError("a web server answers there, as a dashboard does; the GCS has another port, 6379 as a rule")
