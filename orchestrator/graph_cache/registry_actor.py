"""The registry as an actor of the cluster's: one for each set of settings."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import ray

from orchestrator.cluster.singletons import cluster_wide
from orchestrator.graph_cache import key as keys
from orchestrator.graph_cache.registry import Registry

NAME = "graph-registry"  # its beginning
# Each replica that waits holds a call: with Ray's default of 1000, as many of them would shut the leader out, and
# nothing would ever be published (bench=simulate). An actor without async methods would get as many threads.
_CALLS = 100_000
_PART = 0.8  # of a node's object store; the rest is for what is on its way


class RegistryActor(Registry):
    """A registry that knows the node where it runs, and whether it was restarted. Arguments as Registry's."""

    def __init__(self, store_uri: str, lease_s: float, lead_s: float, max_bytes: int) -> None:
        context = ray.get_runtime_context()
        here = [node for node in ray.nodes() if node["NodeID"] == context.get_node_id()]
        rooms = [int(_PART * node["Resources"].get("object_store_memory", 0)) for node in here]
        restarted = bool(context.was_current_actor_reconstructed)
        super().__init__(store_uri, lease_s, lead_s, min([max_bytes, *rooms]), restarted)


def connect(namespace: str, store_uri: str, lease_s: float, lead_s: float, max_bytes: int) -> Any:
    """The registry with these settings, started if there is none: who asks for another store gets another registry.

    It uses no CPU of the cluster's and outlives its driver.
    """
    store = store_uri if "://" in store_uri else os.path.abspath(store_uri)
    lease_s, lead_s = float(lease_s), float(lead_s)  # 30 and 30.0 are one lease
    code = keys.source_digest(Path(__file__).parent)  # a driver of another version does not talk to this one
    identity = hashlib.sha256(json.dumps([store, lease_s, lead_s, max_bytes, code]).encode()).hexdigest()
    options = cluster_wide(f"{NAME}-{identity[:16]}", namespace) | {"max_concurrency": _CALLS}
    return ray.remote(RegistryActor).options(**options).remote(store, lease_s, lead_s, max_bytes)


def running(namespace: str) -> list[Any]:
    """All registries of a namespace."""
    found = ray.util.list_named_actors(all_namespaces=True)
    names = sorted(a["name"] for a in found if a["namespace"] == namespace and a["name"].startswith(NAME))
    return [ray.get_actor(name, namespace) for name in names]
