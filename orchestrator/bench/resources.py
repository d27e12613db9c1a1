"""Room for several replicas that share the cores of one machine, in turn."""

from __future__ import annotations

from orchestrator.config import AppConfig, ClusterKind


def make_room(app: AppConfig, replicas: int) -> None:
    """Let a local Ray of our own offer enough CPUs for that many, and one more; a user's `num_cpus` stays."""
    if app.cluster.kind is ClusterKind.local and app.cluster.num_cpus is None:
        app.cluster.num_cpus = int(replicas * app.engine.tensor_parallel_size * app.engine.cpus_per_rank + 1)
