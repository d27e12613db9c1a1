"""Ray actors that there is one of in a cluster."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def cluster_wide(name: str, namespace: str) -> dict[str, Any]:
    """Options of an actor that there is one of, that uses no CPU of the cluster's, and that outlives its maker.

    A Ray Serve replica's actors would land in its placement group, and end with it, were it not for the strategy.
    """
    return {
        "name": name,
        "namespace": namespace,
        "get_if_exists": True,
        "lifetime": "detached",
        "num_cpus": 0,
        "max_restarts": -1,
        "max_task_retries": 3,
        "scheduling_strategy": "DEFAULT",
    }


def end(namespace: str, beginnings: Sequence[str]) -> list[str]:
    """End those of a namespace whose names begin so; Ray has to be connected. Returns their names."""
    import ray

    named = ray.util.list_named_actors(all_namespaces=True)
    names = sorted(a["name"] for a in named if a["namespace"] == namespace and a["name"].startswith(tuple(beginnings)))
    for name in names:
        ray.kill(ray.get_actor(name, namespace), no_restart=True)
    return names
