"""A model that travels to more nodes than can be had here: real decisions (weights/swarm.py), a made-up network.

Each stream of a node has its share of what the node's network and the origin send; a question to the directory takes
its time, and questions are answered one after the other. Left out: nodes that fail, disks, and whatever else the
network carries.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass
from itertools import count

from orchestrator.weights.swarm import Errand, Swarm
from orchestrator.weights.waiting import Waiting

_FOR_EVER = 1e9  # seconds; no errand is lost
Stream = tuple[str, int]


@dataclass(frozen=True)
class Network:
    """What a cluster has.

    Attributes:
        node_bytes_s: what a node sends, and as much again what it gets.
        origin_bytes_s: what the origin sends, to all together.
        question_s: seconds in which the directory answers one question.
    """

    node_bytes_s: float
    origin_bytes_s: float
    question_s: float


@dataclass(frozen=True)
class Travelled:
    """How it went: seconds until the first and the last node had all, pieces read from the origin, and questions."""

    first_s: float
    last_s: float
    read: int
    questions: int


def travel(nodes: int, pieces: int, piece_bytes: int, streams: int, readers: int, network: Network) -> Travelled:
    """Let a model travel to all nodes at once.

    Args:
        nodes: how many.
        pieces: of the model.
        piece_bytes: of each.
        streams: pieces that a node fetches, and gives, at a time.
        readers: pieces that are read from the origin at a time.
        network: what carries them.
    """
    return _Cluster(nodes, pieces, piece_bytes, streams, readers, network).run()


class _Cluster:
    def __init__(self, nodes: int, pieces: int, piece_bytes: int, streams: int, readers: int, network: Network) -> None:
        self._now = 0.0
        self._swarm = Swarm(pieces, 1, readers, streams, _FOR_EVER, lambda: self._now)
        self._waiting: Waiting[Stream] = Waiting()
        self._events: list[tuple[float, int, Stream, Errand | None]] = []
        self._number = count()
        self._free_at = 0.0
        self._question_s = network.question_s
        share = network.node_bytes_s / streams
        self._peer_s = piece_bytes / share
        self._origin_s = piece_bytes / min(share, network.origin_bytes_s / readers)
        self._streams = [(f"n{node}", stream) for node in range(nodes) for stream in range(streams)]
        self._nodes = nodes
        self._read = self._questions = 0
        self._done_at: dict[str, float] = {}

    def run(self) -> Travelled:
        for node in dict.fromkeys(node for node, _ in self._streams):
            self._swarm.join(node, {})
        for stream in self._streams:
            self._ask(stream, None)
        while self._events and len(self._done_at) < self._nodes:
            self._now, _, stream, fetched = heapq.heappop(self._events)
            self._answer(stream, fetched)
        if len(self._done_at) < self._nodes:
            return Travelled(math.nan, math.nan, self._read, self._questions)
        return Travelled(min(self._done_at.values()), max(self._done_at.values()), self._read, self._questions)

    def _ask(self, stream: Stream, fetched: Errand | None, after_s: float = 0.0) -> None:
        """A stream asks what is next, and says what it has fetched, some seconds from now."""
        heapq.heappush(self._events, (self._now + after_s, next(self._number), stream, fetched))

    def _answer(self, stream: Stream, fetched: Errand | None) -> None:
        node, _ = stream
        self._questions += 1
        self._free_at = max(self._free_at, self._now) + self._question_s
        late_s = self._free_at - self._now
        if fetched:
            self._swarm.got(node, fetched.piece, "digest")
            if self._swarm.complete(node):
                self._done_at[node] = self._free_at
        errand = None if self._swarm.complete(node) else self._swarm.next(node)
        for other, _, found in self._waiting.turn(self._swarm.next) if fetched else ():
            self._fetch(other, found, late_s)
        if errand:
            self._fetch(stream, errand, late_s)
        elif fetched and not self._swarm.complete(node):
            self._ask(stream, None, late_s)
        elif not self._swarm.complete(node):
            self._waiting.add(node, stream)

    def _fetch(self, stream: Stream, errand: Errand, late_s: float) -> None:
        self._read += not errand.source
        self._ask(stream, errand, late_s + (self._peer_s if errand.source else self._origin_s))
