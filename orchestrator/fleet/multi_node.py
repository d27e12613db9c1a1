"""The other nodes of a replica that does not fit one: its ranks there have a disk, a log and a clock of their own."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.util import get_current_placement_group
from ray.util.placement_group import placement_group_table
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator import timeline
from orchestrator.graph_cache import bundle
from orchestrator.graph_cache.client import AOT_FOLDER, GraphCacheClient
from orchestrator.graph_cache.folders import make_private
from orchestrator.graph_cache.settings import CacheSettings
from orchestrator.weights.node import here
from orchestrator.weights.settings import Weights

_CALL_S = 300.0  # for the slowest node


@dataclass(frozen=True)
class MultiNode:
    """Carries graphs and events between a replica's nodes. Call it in the replica's actor.

    Args:
        cache: the graph cache's settings.
        root: the replica's cache root; the same path on every node.
        events: the replica's; they lie in its own folder, the same path on every node.
        weights: the model, if it travels from node to node.
    """

    cache: CacheSettings
    root: Path
    events: timeline.EventLog
    weights: Weights | None = None

    def prepare(self, key: str) -> list[bool]:
        """Make the replica's folder on the other nodes, with vLLM's logging configuration, the model, a key's graphs.

        Args:
            key: the compile key; "" for no graphs.

        Returns:
            For each other node whether its ranks have the graphs; where not, they compile.

        Raises:
            RayError, OSError: a node is gone, or its disk is full.
        """
        return list(self._everywhere(_prepare, self.cache, key, self.root, self.events.file, self.weights).values())

    def read_events(self) -> None:
        """Add what vLLM's ranks on the other nodes said to the replica's events, each once, also on a shared disk.

        Raises:
            RayError: a node is gone.
        """
        known = {replace(event, node="") for event in self.events.read()}
        for node, events in self._everywhere(_events, self.events.file).items():
            for event in (event for event in events if event not in known):
                self.events.write(replace(event, node=node))

    def gather(self, key: str) -> None:
        """Fetch what the ranks of other nodes compiled, so that what is published is whole.

        Args:
            key: the compile key that it is for.

        Raises:
            ArtifactRefused: what a node sent is not authentic.
            RayError: a node is gone.
        """
        signing_key = bundle.signing_key(self.cache.key_file)
        for data in self._everywhere(_packed, self.cache, key, self.root).values():
            _, payload = bundle.verify(memoryview(data), signing_key, key, self.cache.limits)
            bundle.install(payload, self.root, self.cache.limits)

    def clean(self) -> None:
        """Remove the replica's folder from the other nodes."""
        self._everywhere(_remove, self.events.file.parent)

    def _everywhere(self, work: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
        """What `work` returns on each other node, by the node's id."""
        group = get_current_placement_group()
        here = ray.get_runtime_context().get_node_id()
        nodes = sorted(set(placement_group_table(group)["bundles_to_node_id"].values()) - {here}) if group else []
        task = ray.remote(work)
        there = [NodeAffinitySchedulingStrategy(node, soft=False) for node in nodes]
        calls = [task.options(num_cpus=0, scheduling_strategy=strategy).remote(*arguments) for strategy in there]
        return dict(zip(nodes, ray.get(calls, timeout=None if self.weights else _CALL_S), strict=True))


def _prepare(cache: CacheSettings, key: str, root: Path, events_file: Path, weights: Weights | None) -> bool:
    if weights:
        ray.get(here(weights.namespace).bring.remote(weights))
    for folder in (events_file.parent, root):
        make_private(folder)
    timeline.write_logging_config(str(events_file))
    client = GraphCacheClient(cache, "far", timeline.EventLog(root / "far.jsonl"))
    return bool(key) and client.install_ahead(key, root)


def _events(file: Path) -> list[timeline.Event]:
    return timeline.EventLog(file).read()


def _packed(cache: CacheSettings, key: str, root: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    folders = sorted(path for path in (root / AOT_FOLDER).glob("*") if path.is_dir())
    manifest = {"key": key, "factors": {}, "created": 0.0, "publisher": ""}
    return bundle.pack(root, folders, bundle.signing_key(cache.key_file), manifest)


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
