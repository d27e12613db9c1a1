"""Make nodes ready before a replica is asked of them: their zygote has imported vLLM, and graphs are installed."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator import zygote
from orchestrator.cluster import prestart
from orchestrator.graph_cache.client import GraphCacheClient
from orchestrator.graph_cache.settings import CacheSettings
from orchestrator.timeline import EventLog
from orchestrator.weights import node as weights_node
from orchestrator.weights.settings import Weights


def make_ready(
    nodes: Iterable[str],
    cache: CacheSettings,
    module: str,
    keys: Sequence[str] = (),
    *,
    weights: Sequence[Weights] = (),
    workers: Sequence[str] = (),
) -> dict[str, Any]:
    """Begin to make nodes ready; nobody has to wait for it.

    Args:
        nodes: their Ray ids, in hex.
        cache: the graph cache's settings.
        module: what the nodes' zygotes import, see `zygote.py_executable`.
        keys: whose graphs to install.
        weights: models to fetch; that goes on when the node is said to be ready.
        workers: for each of these runtime environments a Ray worker is to wait there; see `prestart.one_more`.

    Returns:
        For each node the reference of a task: how many keys' graphs it has installed, once it is ready.
    """
    options = {
        "num_cpus": 0,
        "max_retries": 0,
        "runtime_env": {"py_executable": zygote.py_executable(sys.executable, module)},
    }
    task = ray.remote(_on_the_node)
    there = {node: NodeAffinitySchedulingStrategy(node, soft=False) for node in nodes}
    work = (cache, list(keys), list(weights), list(workers))
    return {n: task.options(scheduling_strategy=s, **options).remote(*work) for n, s in there.items()}


def _on_the_node(cache: CacheSettings, keys: Sequence[str], weights: Sequence[Weights], workers: Sequence[str]) -> int:
    """That this runs in a fork of the zygote is half of the work."""
    for environment in workers:
        prestart.one_more(environment)
    for model in weights:
        weights_node.here(model.namespace).bring.remote(model)
    client = GraphCacheClient(cache, "prefetch", EventLog(os.devnull))  # nobody reads how long it takes
    return sum(client.install_ahead(key) for key in keys)
