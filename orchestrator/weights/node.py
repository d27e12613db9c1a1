"""A node's actor: it fetches models for the node's replicas, and gives pieces to other nodes."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayActorError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.cluster.singletons import cluster_wide
from orchestrator.graph_cache import bundle
from orchestrator.weights.directory import CODE
from orchestrator.weights.listing import Listing
from orchestrator.weights.node_store import NodeStore
from orchestrator.weights.settings import Weights
from orchestrator.weights.transfer import Brought, Transfer

NAME = "weights-node-"  # then a digest of this code, and the node's id
_THREADS = 64  # replicas of the node that wait, and pieces that are given


class NodeModels:
    """The models of one node. Its methods run in threads."""

    def __init__(self) -> None:
        self._transfers: dict[str, Transfer] = {}
        self._copies: dict[str, tuple[NodeStore, Listing]] = {}  # by the name of the swarm
        self._lock = threading.Lock()
        self._here = ray.get_runtime_context().get_node_id()

    def bring(self, weights: Weights, small: bool = False) -> Brought:
        """Have a model on this node; whoever asks meanwhile waits for the same. A copy that is there is read first.

        Args:
            weights: which.
            small: return once its configuration and its tokenizer are there.

        Raises:
            ModelError: nobody can give a part of it.
            OSError: this node's disk is full, or cannot be written.
        """
        transfer = self._transfer(weights)
        (transfer.small if small else transfer.over).wait()
        if transfer.error is not None and not (small and transfer.has_small):
            raise transfer.error
        return transfer.brought

    def read(self, swarm: str, number: int, offset: int, length: int) -> Any:
        """A part of a piece, for another node: shape (length,).

        Raises:
            OSError, KeyError: it is not there.
        """
        store, listing = self._copies[swarm]
        return np.frombuffer(store.read(listing, listing.pieces[number], offset, length), dtype=np.uint8)

    def _transfer(self, weights: Weights) -> Transfer:
        bounds = weights.bounds
        store = NodeStore(weights.folder, bundle.signing_key(weights.key_file), bounds.max_bytes)
        swarm = store.swarm(weights.listing)
        with self._lock:
            running = self._transfers.get(swarm)
            if running is not None and not running.over.is_set():
                return running
            self._copies[swarm] = store, weights.listing
            made = self._transfers[swarm] = Transfer(weights, store, self._here, _Peers(weights, swarm).read)
        threading.Thread(target=made.run, daemon=True).start()
        return made


class _Peers:
    """Other nodes' actors."""

    def __init__(self, weights: Weights, swarm: str) -> None:
        self._weights, self._swarm = weights, swarm
        self._known: dict[str, Any] = {}

    def read(self, node: str, number: int, offset: int, length: int) -> memoryview:
        if node not in self._known:
            try:
                self._known[node] = ray.get_actor(_name(node), self._weights.namespace)
            except ValueError as error:
                raise RayActorError() from error
        call = self._known[node].read.remote(self._swarm, number, offset, length)
        try:
            return np.asarray(ray.get(call, timeout=self._weights.bounds.patience_s)).data
        except RayActorError:
            self._known.pop(node, None)
            raise


def here(namespace: str) -> Any:
    """This node's actor, started if there is none. It uses no CPU of the cluster's and outlives its driver."""
    node = ray.get_runtime_context().get_node_id()
    options = cluster_wide(_name(node), namespace) | {
        "max_restarts": 0,  # who needs it asks for it anew
        "max_task_retries": 0,
        "max_concurrency": _THREADS,
        "scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False),
    }
    return ray.remote(NodeModels).options(**options).remote()


def _name(node: str) -> str:
    return f"{NAME}{CODE}-{node}"
