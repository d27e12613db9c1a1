"""A model on its way to one replica's node. It begins at once, beside the process start and the imports."""

from __future__ import annotations

from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from orchestrator.cluster.shape import ClusterShape
from orchestrator.errors import EngineStartError, one_line
from orchestrator.timeline import EventLog
from orchestrator.weights import node, node_store
from orchestrator.weights.settings import Weights
from orchestrator.weights.transfer import Brought

_TRIES = 2  # a node's actor that died is started again


class Arrival:
    """What a replica waits for. Call it in the replica's process, which keeps the copy from being removed.

    Args:
        weights: which model.
        replica: the replica's name.
        events: where the phases are marked.
        whole: wait for the weights too; else the configuration and the tokenizer are enough.

    Attributes:
        brought: how it came, once all is there.
    """

    def __init__(self, weights: Weights, replica: str, events: EventLog, *, whole: bool = True) -> None:
        self.brought: Brought | None = None
        self._whole = whole
        self._weights, self._replica, self._events = weights, replica, events
        self._used = node_store.in_use(weights.folder, weights.listing)
        self._calls = self._asked()

    def configuration(self) -> None:
        """Wait for the model's configuration and tokenizer.

        Raises:
            EngineStartError: they did not come.
        """
        self._wait(0)
        self._events.mark("model files")

    def all(self) -> None:
        """Wait for the whole model.

        Raises:
            EngineStartError: it did not come.
        """
        if not self._whole:
            return
        self.brought = self._wait(1)
        self._events.mark("model transfer")

    def there(self) -> bool:
        """Is all there already?"""
        return bool(ray.wait([self._calls[1]], timeout=0)[0])

    def _asked(self) -> list[Any]:
        actor = node.here(self._weights.namespace)
        return [actor.bring.remote(self._weights, small) for small in (True, False)]

    def _wait(self, which: int) -> Brought:
        for left in reversed(range(_TRIES)):
            try:
                found: Brought = ray.get(self._calls[which])
                return found
            except RayTaskError as error:
                raise self._failure(error.cause) from error
            except RayError as error:
                if not left or not isinstance(error, RayActorError):
                    raise self._failure(error) from error
                self._calls = self._asked()
        raise AssertionError("unreachable")

    def _failure(self, error: Exception) -> EngineStartError:
        cause = one_line(error)
        text = f"{self._replica}: the model did not come to its node: {cause}"
        return EngineStartError(text, replica=self._replica, phase="model files", cause=cause)


def begin_here(weights: Weights, shape: ClusterShape) -> None:
    """Fetch a model onto the driver's node where that is of use; nobody has to wait for it.

    A folder may be on this node alone: then other nodes get it from here. And a single node is the replicas' own.
    """
    if weights.listing.is_folder or len(shape.nodes) == 1:
        node.here(weights.namespace).bring.remote(weights)
