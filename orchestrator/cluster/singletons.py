"""Ray actors that there is one of in a cluster."""

from __future__ import annotations

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
