"""Which nodes to make ready ahead of the autoscaler: those that a model may grow onto."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import ray
from ray import serve

from orchestrator.cluster.shape import rank_resources
from orchestrator.config import AppConfig
from orchestrator.fleet import node_warmer
from orchestrator.graph_cache.settings import CacheSettings, cache_settings
from orchestrator.serve import controller
from orchestrator.serve.background import repeat
from orchestrator.serve.status_board import Board
from orchestrator.weights.settings import Weights

logger = logging.getLogger("ray.serve")
_PERIOD_S = 2.0
_ANSWER_S = 60.0
_KEYS = 4  # whose graphs are installed: the newest


def candidates(nodes: Sequence[Mapping[str, Any]], bundle: Mapping[str, float]) -> list[str]:
    """Ids of the living nodes that are large enough for a bundle, in the order of `nodes`, which is `ray.nodes()`."""
    alive = [node for node in nodes if node["Alive"]]
    return [n["NodeID"] for n in alive if all(n["Resources"].get(k, 0.0) >= v for k, v in bundle.items())]


def missing(
    nodes: Sequence[str], things: Sequence[str], ready: Mapping[str, set[str]], limit: int
) -> dict[str, list[str]]:
    """What is to be begun: for nodes, those that are ready before others, which of `things` they have not got.

    Args:
        nodes: candidates, by preference.
        things: what each one should have: graphs by their keys, Ray workers by their runtime environments, and models
            by what they are called on a node.
        ready: what each node got that was made ready before.
        limit: how many nodes to keep ready.
    """
    chosen = sorted(nodes, key=lambda node: node not in ready)[:limit]
    wanted = {node: sorted(set(things) - ready.get(node, set())) for node in chosen}
    return {node: new for node, new in wanted.items() if new or node not in ready}


class Ahead:
    """Keeps nodes ready, at most `cold_start.prefetch_nodes` of them.

    The signals are the autoscaler's: nodes that joined, and models with fewer replicas than they may have. Of several
    fronts one does it, or as many workers would wait.

    Args:
        app: the checked configuration.
        most: how many replicas all models may have together.
        module: what the zygotes import.
        weights: models that travel from node to node.

    Attributes:
        models: those that are sent ahead, by what they are called on a node.
    """

    def __init__(self, app: AppConfig, most: int, module: str, weights: Iterable[Weights] = ()) -> None:
        self._app, self._most, self._module = app, most, module
        self.models = {model.listing.version: model for model in _together(weights)}
        self._bundle = rank_resources(app.engine)
        self._ready: dict[str, set[str]] = {}

    async def run(self) -> None:
        """Look every two seconds, until cancelled."""
        await repeat(self.step, _PERIOD_S, "no nodes are made ready ahead")

    def step(self) -> None:
        """Begin what is missing now."""
        if not first():
            return
        found = controller.deployments(self._app.serve.name)
        states = [d.replica_states for name, d in found.items() if name != controller.INGRESS]
        if sum(of.get("RUNNING", 0) for of in states) >= self._most:
            return
        cache = cache_settings(self._app, share=self._app.cold_start.share_graphs)
        keys, workers = _newest(cache), self._workers()
        nodes = candidates(ray.nodes(), self._bundle)
        self._ready = {node: done for node, done in self._ready.items() if node in nodes}
        things = [*keys, *workers, *self.models]
        for node, new in missing(nodes, things, self._ready, self._app.cold_start.prefetch_nodes).items():
            self._ready.setdefault(node, set()).update(new)
            graphs, waiting = [key for key in keys if key in new], [text for text in workers if text in new]
            weights = [model for version, model in self.models.items() if version in new]
            node_warmer.make_ready([node], cache, self._module, graphs, weights=weights, workers=waiting)
            logger.info("node %s is made ready: %d graphs, %d models more", node[:8], len(graphs), len(weights))

    def _workers(self) -> list[str]:
        """The runtime environments for each of which a Ray worker is to wait on each node."""
        if not self._app.cold_start.prestart_worker:
            return []
        board = Board.connect(self._app.cluster.namespace)
        return list(ray.get(board.workers.remote(self._app.serve.name), timeout=_ANSWER_S))


def first() -> bool:
    """Is this the first of its deployment's replicas? When that is gone, Ray Serve has another one be the first."""
    rank = serve.get_replica_context().rank
    return rank is not None and rank.rank == 0  # None until the replica is set up


def _together(weights: Iterable[Weights]) -> list[Weights]:
    """Those that a node keeps beside each other: one more would have another one removed."""
    chosen: list[Weights] = []
    for model in weights:
        if sum(one.listing.bytes for one in [*chosen, model]) <= model.bounds.max_bytes:
            chosen.append(model)
    return chosen


def _newest(cache: CacheSettings) -> list[str]:
    if cache.registry is None:
        return []
    headers = ray.get(cache.registry.entries.remote(), timeout=_ANSWER_S)
    return sorted(headers, key=lambda key: float(headers[key].get("created", 0.0)))[-_KEYS:]
