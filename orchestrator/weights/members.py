"""The nodes of a swarm: what each has and fetches, and who has a piece."""

from __future__ import annotations

import random
from dataclasses import dataclass, field


@dataclass
class Node:
    """One that wants a model, or has it."""

    asks: list[int]  # pieces in the order that it asks for them, from the end; what it has by then is passed by
    has: set[int] = field(default_factory=set)
    errands: dict[int, tuple[str, float]] = field(default_factory=dict)  # piece -> its source, and until when
    gives: int = 0  # pieces that others fetch from it now
    from_origin: int = 0  # of its errands
    reads: bool = True  # it can reach the origin
    heard: float = 0.0  # when it asked last

    def wants(self, piece: int) -> bool:
        """Has it not got a piece, and does not fetch it?"""
        return piece not in self.has and piece not in self.errands


class Holders:
    """A set of nodes of which some can be drawn by lot at once."""

    def __init__(self) -> None:
        self._nodes: list[str] = []
        self._places: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._nodes)

    def add(self, node: str) -> None:
        """A node has it."""
        if node not in self._places:
            self._places[node] = len(self._nodes)
            self._nodes.append(node)

    def discard(self, node: str) -> None:
        """A node has it no more, if it had it."""
        place = self._places.pop(node, None)
        if place is None:
            return
        last = self._nodes.pop()
        if last != node:
            self._nodes[place] = last
            self._places[last] = place

    def some(self, most: int, chance: random.Random) -> list[str]:
        """All, or as many as `most` of them."""
        return self._nodes if len(self._nodes) <= most else chance.choices(self._nodes, k=most)
