"""The graph cache as replicas need to know it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from orchestrator.config import AppConfig
from orchestrator.graph_cache import bundle, registry_actor


@dataclass(frozen=True)
class CacheSettings:
    """What a replica needs to know of the graph cache; `registry` is None where graphs are not shared.

    Attributes:
        store: the durable store's URI, for bundles that the object store has no room for.
        key_file: see `bundle.signing_key`.
        limits: ceilings on what is unpacked.
        wait_s: how long to wait for a replica that compiles.
        lease_s: the registry's lease.
        node_folder: where a node's replicas share installed bundles; at most `node_bytes` of them.
    """

    registry: Any
    store: str
    key_file: str
    limits: bundle.Limits
    wait_s: float
    lease_s: float
    node_folder: str
    node_bytes: int


def cache_settings(app: AppConfig, *, share: bool = True) -> CacheSettings:
    """The graph cache as replicas need to know it; starts the registry, if graphs are shared and there is none."""
    cache = app.graph_cache
    handle = None
    if share:
        served = cache.max_served_mib << 20  # at most: the registry looks at its node's object store
        handle = registry_actor.connect(app.cluster.namespace, cache.store, cache.lease_s, cache.wait_timeout_s, served)
    limits = bundle.Limits(cache.max_artifact_mib << 20, cache.max_files)
    return CacheSettings(
        handle, cache.store, cache.key_file, limits, cache.wait_timeout_s, cache.lease_s,
        cache.node_folder, cache.max_node_mib << 20,
    )  # fmt: skip
