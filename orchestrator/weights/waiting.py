"""Streams of nodes that found nothing to fetch, and wait until something has changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from orchestrator.weights.swarm import Errand

T = TypeVar("T")
_TURNS = 8


class Waiting(Generic[T]):
    """Who waits, the longest wait first."""

    def __init__(self) -> None:
        self._nodes: dict[T, str] = {}

    def add(self, node: str, who: T) -> None:
        """A stream of a node waits."""
        self._nodes[who] = node

    def forget(self, who: T) -> None:
        """It waits no longer, if it did."""
        self._nodes.pop(who, None)

    def all(self, node: str = "") -> list[T]:
        """All that wait, or a node's."""
        return [who for who, waits in self._nodes.items() if node in ("", waits)]

    def turn(self, find: Callable[[str], Errand | None]) -> list[tuple[T, str, Errand]]:
        """After a change: who need not wait any longer, its node, and what it is to fetch.

        A change lets a few fetch something. So a few are looked at, and who finds nothing waits behind the others. If
        all asked again after each change, a large cluster would do little else.

        Args:
            find: what a node is to fetch next; None: nothing can be had at this moment.
        """
        found = []
        for _ in range(min(_TURNS, len(self._nodes))):
            who = next(iter(self._nodes))
            node = self._nodes.pop(who)
            if (errand := find(node)) is not None:
                found.append((who, node, errand))
            else:
                self._nodes[who] = node
        return found
