"""Who fetches which piece of a model from whom: each from the origin once, and then from nodes that have it.

All nodes fetch at the same time, each in an order of its own, and each gives on what it has: as BitTorrent does it
(Cohen 2003, "Incentives Build Robustness in BitTorrent"), with one place that decides. No node waits for another's
whole copy, and the last node is done soon after the first.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from orchestrator.weights.members import Holders, Node

_TRIED = 64  # pieces that are looked at for one that somebody can give now
_ASKED = 16  # of a piece's holders, drawn by lot where it has more: a decision takes no longer in a large cluster
_LOOK = 1 / 50  # of the patience: how often lost errands are looked for


@dataclass(frozen=True)
class Errand:
    """A piece to fetch: its number, from which node ("": the origin), and its digest, where one is known."""

    piece: int
    source: str
    digest: str


class Swarm:
    """The nodes that want one version of a model, or have it. Belongs to one event loop.

    A decision takes about the same time however many nodes there are.

    Args:
        pieces: how many there are.
        first: how many of the first ones are wanted before the others.
        readers: pieces that are read from the origin at a time.
        streams: pieces that a node gives at a time.
        patience_s: after which an errand that is not heard of is taken for lost.
        clock: seconds, monotonic.
    """

    def __init__(
        self, pieces: int, first: int, readers: int, streams: int, patience_s: float, clock: Callable[[], float]
    ) -> None:
        self.digests = [""] * pieces
        self._first, self._readers, self._streams = first, readers, streams
        self._patience_s, self._clock = patience_s, clock
        self._holders = [Holders() for _ in range(pieces)]
        self._unread = dict.fromkeys(range(pieces))  # an ordered set: nobody has them, and nobody reads them
        self._nodes: dict[str, Node] = {}
        self._random = random.Random(0)
        self._reading = 0  # errands to the origin
        self._lacking = pieces  # pieces that nobody has
        self._looked = clock()  # for lost ones

    def join(self, node: str, held: Mapping[int, str]) -> list[int]:
        """A node comes, with pieces that it has: number -> digest (see `NodeStore.digest`).

        Returns:
            Those that are not what the others have: it has to fetch them.
        """
        self.leave(node)
        wrong = [piece for piece, digest in held.items() if self.digests[piece] not in ("", digest)]
        rest = list(range(self._first, len(self.digests)))
        self._random.shuffle(rest)
        self._nodes[node] = Node([*rest, *reversed(range(self._first))], heard=self._clock())
        for piece, digest in held.items():
            if piece not in wrong:
                self._has(node, piece, digest)
        return wrong

    def knows(self, node: str) -> bool:
        """Has it joined?"""
        return node in self._nodes

    def rest(self, node: str) -> None:
        """A node fetches nothing any more; others may still fetch from it."""
        if node in self._nodes:
            self._nodes[node].reads = False

    def leave(self, node: str) -> None:
        """A node is gone, or has no copy any more."""
        known = self._nodes.pop(node, None)
        if known is None:
            return
        for piece, (source, _) in known.errands.items():
            self._end(known, piece, source)
        for piece in known.has:
            self._lost(node, piece)

    def complete(self, node: str) -> bool:
        """Has it all pieces?"""
        return len(self._nodes[node].has) == len(self.digests)

    def stuck(self) -> bool:
        """Is there a piece that nobody has, and that nobody can read?"""
        if not self._lacking:
            return False
        since = self._clock() - self._patience_s
        return not any((node.reads and node.heard >= since) or node.errands for node in self._nodes.values())

    def next(self, node: str) -> Errand | None:
        """What a node is to fetch next; None: nothing that it lacks can be had at this moment.

        The origin goes first where it has room: it is the slowest source, and no other reads for this node alone.
        """
        self._give_up_lost()
        known = self._nodes[node]
        known.heard = self._clock()
        found = self._from_the_origin(known) or self._from_a_node(known)
        if found is None:
            return None
        piece, source = found
        known.errands[piece] = (source, self._clock() + self._patience_s)
        if source:
            self._nodes[source].gives += 1
        else:
            known.from_origin += 1
            self._reading += 1
        return Errand(piece, source, self.digests[piece])

    def goes_on(self, node: str, piece: int) -> None:
        """An errand takes long, and is not lost."""
        if (running := self._nodes[node].errands.get(piece)) is not None:
            self._nodes[node].errands[piece] = (running[0], self._clock() + self._patience_s)

    def give_back(self, node: str, piece: int) -> None:
        """A node does not run an errand that was found for it."""
        self._over(node, piece)
        self._again(node, piece)

    def got(self, node: str, piece: int, digest: str) -> bool:
        """A node has fetched a piece. False: it is not what the others have, and has to be fetched again."""
        self._over(node, piece)
        if self.digests[piece] not in ("", digest):
            self._again(node, piece)
            return False
        self._has(node, piece, digest)
        return True

    def failed(self, node: str, piece: int, source: str, *, gone: bool) -> None:
        """A node could not fetch a piece; it will be given it again.

        Args:
            node: who could not.
            piece: which.
            source: from where; "": the origin.
            gone: the source is no more, or the origin cannot be reached from there; else what a node gave was wrong,
                and it has to fetch that piece itself.
        """
        self.give_back(node, piece)
        if gone and not source:
            self._nodes[node].reads = False
        elif gone:
            self.leave(source)
        elif source in self._nodes:
            self._lost(source, piece)
            self._nodes[source].has.discard(piece)
            self._again(source, piece)

    def _from_the_origin(self, known: Node) -> tuple[int, str] | None:
        """The next piece that nobody has read yet, if the origin has room; readers are spread over the nodes."""
        share = max(1, self._readers // len(self._nodes))
        if not known.reads or self._reading >= self._readers or known.from_origin >= share:
            return None
        piece = next((piece for piece in self._unread if known.wants(piece)), None)
        if piece is None:
            return None
        del self._unread[piece]
        return piece, ""

    def _from_a_node(self, known: Node) -> tuple[int, str] | None:
        """Its next piece that some node has and can give now."""
        asks = known.asks
        passed: list[int] = []
        found = None
        while asks and len(passed) < _TRIED and found is None:
            piece = asks.pop()
            if not known.wants(piece):
                continue
            some = self._holders[piece].some(_ASKED, self._random)
            free = [node for node in some if self._nodes[node].gives < self._streams]
            if free:
                found = piece, min(free, key=lambda node: (self._nodes[node].gives, node))
            else:
                passed.append(piece)
        asks.extend(reversed(passed))
        return found

    def _has(self, node: str, piece: int, digest: str) -> None:
        self.digests[piece] = digest
        self._nodes[node].has.add(piece)
        self._lacking -= not len(self._holders[piece])
        self._holders[piece].add(node)
        self._unread.pop(piece, None)

    def _lost(self, node: str, piece: int) -> None:
        """A node has not got a piece any more; if nobody has, the origin is asked again."""
        if not len(self._holders[piece]):
            return
        self._holders[piece].discard(node)
        if not len(self._holders[piece]):
            self._lacking += 1
            self._unread[piece] = None

    def _again(self, node: str, piece: int) -> None:
        known = self._nodes[node]
        if known.wants(piece):
            known.asks.append(piece)

    def _over(self, node: str, piece: int) -> None:
        """An errand has ended, well or not, if it was still running."""
        known = self._nodes[node]
        running = known.errands.pop(piece, None)
        if running is not None:
            self._end(known, piece, running[0])

    def _end(self, known: Node, piece: int, source: str) -> None:
        if source in self._nodes:
            self._nodes[source].gives -= 1
        if not source:
            known.from_origin -= 1
            self._reading -= 1
            if not len(self._holders[piece]):
                self._unread[piece] = None

    def _give_up_lost(self) -> None:
        """What was to be there by now is given out again; who comes late with it is heard all the same."""
        now = self._clock()
        if now - self._looked < _LOOK * self._patience_s:
            return
        self._looked = now
        for name, node in self._nodes.items():
            for piece in [p for p, (_, until) in node.errands.items() if until < now]:
                self._over(name, piece)
                self._again(name, piece)
