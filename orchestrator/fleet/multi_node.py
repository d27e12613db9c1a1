"""The other nodes of a replica that does not fit one: its ranks there look for graphs on their own disk."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.util import get_current_placement_group
from ray.util.placement_group import placement_group_table
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.graph_cache import bundle
from orchestrator.graph_cache.client import AOT_FOLDER, GraphCacheClient
from orchestrator.graph_cache.settings import CacheSettings
from orchestrator.timeline import EventLog

_CALL_S = 300.0  # for the slowest node


@dataclass(frozen=True)
class MultiNode:
    """Carries graphs between a replica's nodes. Call it in the replica's actor.

    Args:
        cache: the graph cache's settings.
        root: the replica's cache root; the same path on every node.
    """

    cache: CacheSettings
    root: Path

    def install(self, key: str) -> list[bool]:
        """Install a key's graphs on the other nodes; where that fails, vLLM's ranks compile.

        Returns:
            For each other node whether its ranks have them.
        """
        return self._everywhere(_install, self.cache, key, self.root)

    def gather(self, key: str) -> None:
        """Fetch what the ranks of other nodes compiled, so that what is published is whole.

        Args:
            key: the compile key that it is for.

        Raises:
            ArtifactRefused: what a node sent is not authentic.
            RayError: a node is gone.
        """
        signing_key = bundle.signing_key(self.cache.key_file)
        for data in self._everywhere(_packed, self.cache, key, self.root):
            _, payload = bundle.verify(memoryview(data), signing_key, key, self.cache.limits)
            bundle.install(payload, self.root, self.cache.limits)

    def clean(self) -> None:
        """Remove the cache root from the other nodes."""
        self._everywhere(_remove, self.root)

    def _everywhere(self, work: Callable[..., Any], *arguments: Any) -> list[Any]:
        group = get_current_placement_group()
        here = ray.get_runtime_context().get_node_id()
        nodes = set(placement_group_table(group)["bundles_to_node_id"].values()) - {here} if group else set()
        task = ray.remote(work)
        there = [NodeAffinitySchedulingStrategy(node, soft=False) for node in sorted(nodes)]
        calls = [task.options(num_cpus=0, scheduling_strategy=strategy).remote(*arguments) for strategy in there]
        return list(ray.get(calls, timeout=_CALL_S))


def _install(cache: CacheSettings, key: str, root: Path) -> bool:
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    return GraphCacheClient(cache, "far", EventLog(root / "far.jsonl")).install_ahead(key, root)


def _packed(cache: CacheSettings, key: str, root: Path) -> bytes:
    folders = sorted(path for path in (root / AOT_FOLDER).glob("*") if path.is_dir())
    manifest = {"key": key, "factors": {}, "created": 0.0, "publisher": ""}
    return bundle.pack(root, folders, bundle.signing_key(cache.key_file), manifest)


def _remove(root: Path) -> None:
    shutil.rmtree(root, ignore_errors=True)
