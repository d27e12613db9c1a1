"""One model on its way to one node."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from ray.exceptions import RayError, RayTaskError

from orchestrator import paths
from orchestrator.errors import ModelError, one_line
from orchestrator.weights import directory, listing
from orchestrator.weights.directory import Unknown, Unreadable
from orchestrator.weights.node_store import NodeStore
from orchestrator.weights.settings import Weights
from orchestrator.weights.swarm import Errand

_ASK_S = 10.0  # a question is held open so long
_TRIES = 3  # of the origin in a row, then it cannot be reached from here
_AGAIN_S = 0.5
_PLACES = 16


class _NotGivenError(Exception):
    """A source did not give a piece: it is `gone`, or gives what is wrong."""

    def __init__(self, *, gone: bool) -> None:
        super().__init__()
        self.gone = gone


@dataclass
class Brought:
    """How a model came to a node.

    Attributes:
        origin_bytes, peer_bytes, disk_bytes: by where they came from; those on disk were there, and were checked.
        seconds: until all of it was there.
        refused: what was not as its digest says, and then came from elsewhere.
    """

    origin_bytes: int = 0
    peer_bytes: int = 0
    disk_bytes: int = 0
    seconds: float = 0.0
    refused: list[str] = field(default_factory=list)


class Transfer:
    """A model on its way.

    Args:
        weights: which, and the limits.
        store: the node's.
        here: the node's name among those that share the model.
        read_from: (a node's name, a piece's number, where a part begins in it, and how long that is) -> the part;
            raises RayError or OSError.

    Attributes:
        small: set once its configuration and its tokenizer are there, or it has failed.
        over: set once all is there, or it has failed.
        error: why it failed.
    """

    def __init__(
        self, weights: Weights, store: NodeStore, here: str, read_from: Callable[[str, int, int, int], memoryview]
    ) -> None:
        self.brought = Brought()
        self.small, self.over = threading.Event(), threading.Event()
        self.has_small = False
        self.error: Exception | None = None
        self._weights, self._listing, self._store = weights, weights.listing, store
        self._here, self._read_from = here, read_from
        self._swarm = store.swarm(self._listing)
        self._directory = directory.connect(weights.namespace)
        self._has: dict[int, str] = {}
        self._lock = threading.Lock()
        self._joining = threading.Lock()
        self._fetches: dict[int, Errand] = {}  # who fetches a piece now; of two the later one
        self._right: dict[int, str] = {}  # pieces that were fetched, and their digests
        self._places = [threading.Lock() for _ in range(_PLACES)]  # of pieces on the disk
        self._why = ""  # the origin did not give a piece

    def run(self) -> None:
        """Fetch what is lacking. Does not raise: see `error`."""
        began = time.monotonic()
        try:
            with self._store.locked(self._listing):
                self._fetch_all()
        except Exception as error:
            self.error = error
        with suppress(RayError):
            self._directory.rest.remote(self._swarm, self._here)
        self.brought.seconds = time.monotonic() - began
        self.small.set()
        self.over.set()

    def _fetch_all(self) -> None:
        self._store.make_room(self._listing)
        self._has, self.brought.refused = self._store.held(self._listing)
        self.brought.disk_bytes = sum(self._listing.pieces[number].length for number in self._has)
        self._join()
        self._look_for_small()
        streams = [threading.Thread(target=self._stream, daemon=True) for _ in range(self._weights.bounds.streams)]
        for stream in streams:
            stream.start()
        for stream in streams:
            stream.join()
        if self.error is not None:
            raise self.error
        self._store.finish(self._listing, self._has)

    def _stream(self) -> None:
        """Fetch one piece after the other, until all are there or nobody can give the rest."""
        failures, done = 0, None
        try:
            while len(self._has) < len(self._listing.pieces) and self.error is None:
                right, errand = self._ask("next", _ASK_S, done and (done[0].piece, done[1]))
                if done:
                    self._settle(*done, right=right)
                done = None
                if errand is None:
                    continue
                try:
                    if digest := self._fetched(errand):
                        done, failures = (errand, digest), 0
                except _NotGivenError as error:
                    if errand.source:
                        self._ask("failed", errand.piece, errand.source, error.gone)
                        continue
                    failures += 1
                    self._ask("failed", errand.piece, "", failures >= _TRIES)
                    time.sleep(_AGAIN_S)
        except Exception as error:
            self.error = self.error or error

    def _fetched(self, errand: Errand) -> str:
        """Fetch a piece; returns its digest. "": it took so long that another stream fetches it now.

        Raises:
            _NotGivenError: the source did not give it, or something else.
            OSError: this node's disk is full, or cannot be written.
        """
        piece, sha256 = self._listing.pieces[errand.piece], hashlib.sha256()
        lock = self._places[errand.piece % len(self._places)]
        with lock:
            self._fetches[errand.piece] = errand
            known = self._right.get(errand.piece)
            if known and errand.digest in ("", known):  # it came while the directory took it for lost
                return known
        origin, heard = listing.read(self._listing, piece), time.monotonic()
        for offset, length in self._listing.parts(piece):
            try:
                if errand.source:
                    data = self._read_from(errand.source, errand.piece, offset, length)
                else:
                    data = memoryview(next(origin))
            except (RayError, OSError) as error:
                self._why = self._why if errand.source else one_line(error)
                wrong = isinstance(error, RayTaskError) and not isinstance(error.cause, (FileNotFoundError, KeyError))
                raise _NotGivenError(gone=not wrong) from error
            sha256.update(data)
            if time.monotonic() - heard > self._weights.bounds.patience_s / 2:
                self._ask("goes_on", errand.piece)
                heard = time.monotonic()
            with lock:  # whoever is late does not write over what another has checked
                if self._fetches[errand.piece] is not errand:
                    return ""
                self._store.write(self._listing, piece, offset, data)
        digest = self._store.digest(self._listing, errand.piece, sha256.hexdigest())
        if errand.digest not in ("", digest):
            what = f"{piece}, from {f'node {errand.source[:12]}' if errand.source else 'the origin'}"
            self._why = f"{what}, is not what its digest says"
            self.brought.refused.append(what)
            raise _NotGivenError(gone=False)
        with lock:
            if self._fetches[errand.piece] is not errand:
                return ""
            self._right[errand.piece] = digest
            self._store.note(self._listing, piece, digest)
        return digest

    def _settle(self, errand: Errand, digest: str, *, right: bool) -> None:
        """The directory has heard of a piece."""
        piece = self._listing.pieces[errand.piece]
        if not right:  # two have read it from the origin, and it is not the same
            self._why = f"{piece}, is not what another node has read there"
            self.brought.refused.append(f"{piece}, from the origin")
            self._right.pop(errand.piece, None)
            return
        with self._lock:
            self._has[errand.piece] = digest
            if errand.source:
                self.brought.peer_bytes += piece.length
            else:
                self.brought.origin_bytes += piece.length
        self._look_for_small()

    def _look_for_small(self) -> None:
        if not self.has_small and all(number in self._has for number in range(self._listing.small)):
            self.has_small = True
            self.small.set()

    def _ask(self, question: str, *arguments: Any) -> Any:
        """Ask the directory. If it was restarted, it does not know us any more.

        Raises:
            ModelError: nobody can give what is lacking.
            RayError: the directory does not come back.
        """
        while True:
            try:
                return directory.ask(self._directory, question, self._swarm, self._here, *arguments)
            except RayTaskError as error:
                if isinstance(error.cause, Unreadable):
                    origin, why = paths.shown(self._listing.origin), paths.shown(self._why or "no node can reach it")
                    raise ModelError(f"{origin}: {why}.", model=self._listing.model, where="model.id") from error
                if not isinstance(error.cause, Unknown):
                    raise
            self._join()
            time.sleep(_AGAIN_S)  # streams that come back together would undo each other's errands

    def _join(self) -> None:
        with self._joining:
            with self._lock:
                held = dict(self._has)
            facts = (self._swarm, self._here, self._listing, self._weights.bounds, held)
            for number in directory.ask(self._directory, "join", *facts):
                self.brought.refused.append(f"{self._listing.pieces[number]}, on this disk: others have another")
                with self._lock:
                    self._has.pop(number, None)
