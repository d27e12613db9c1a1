"""One model on its way to one node: streams that are late, and parts that are wrong."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorUnavailableError, GetTimeoutError

from orchestrator.weights import directory
from orchestrator.weights.listing import Listing, look
from orchestrator.weights.node_store import NodeStore
from orchestrator.weights.settings import Bounds, Weights
from orchestrator.weights.swarm import Errand
from orchestrator.weights.transfer import Transfer, _NotGivenError
from tests.unit.test_weights_store import KEY, make_model
from tests.waiting import HANG_S

Read = Callable[[str, int, int, int], memoryview]


@pytest.fixture
def listing(tmp_path: Path) -> Listing:
    return replace(look("m", str(make_model(tmp_path / "model", {"a.safetensors": 900})), 900), part_bytes=300)


@pytest.fixture
def make(tmp_path: Path, listing: Listing, monkeypatch: pytest.MonkeyPatch) -> Callable[[Read], Transfer]:
    monkeypatch.setattr(directory, "connect", lambda _: None)

    def made(read: Read) -> Transfer:
        bounds = Bounds(str(tmp_path / "node"), 1 << 30, 2, 2, HANG_S)
        store = NodeStore(bounds.folder, KEY, 1 << 30)
        store.held(listing)
        return Transfer(Weights(listing, bounds, "key", "n"), store, "here", read)

    return made


def content(listing: Listing, file: str = "a.safetensors") -> bytes:
    return (Path(listing.origin) / file).read_bytes()


def here(transfer: Transfer, listing: Listing) -> bytes:
    return (transfer._store.folder / listing.version / "a.safetensors").read_bytes()


def number(listing: Listing) -> int:
    return next(piece.number for piece in listing.pieces if piece.file == "a.safetensors")


def test_a_late_stream_writes_over_nothing(make: Any, listing: Listing) -> None:
    """The directory took its errand for lost, and another stream has fetched the piece meanwhile."""
    reached, go = threading.Event(), threading.Event()

    def read(node: str, _: int, offset: int, length: int) -> memoryview:
        if node == "late" and offset:
            reached.set()
            assert go.wait(HANG_S)
        return memoryview(content(listing)[offset : offset + length] if node == "good" else bytes(length))

    transfer, found = make(read), {}
    piece = number(listing)
    late = threading.Thread(target=lambda: found.update(late=transfer._fetched(Errand(piece, "late", ""))))
    late.start()
    assert reached.wait(HANG_S)
    digest = transfer._fetched(Errand(piece, "good", ""))
    assert here(transfer, listing) == content(listing)
    go.set()
    late.join()
    assert found == {"late": ""}
    assert here(transfer, listing) == content(listing)
    assert transfer._store.held(listing)[0][piece] == digest


def test_a_piece_that_is_there_is_not_fetched_again(make: Any, listing: Listing) -> None:
    asked = []

    def read(node: str, _: int, offset: int, length: int) -> memoryview:
        asked.append(node)
        return memoryview(content(listing)[offset : offset + length])

    transfer, piece = make(read), number(listing)
    digest = transfer._fetched(Errand(piece, "one", ""))
    assert transfer._fetched(Errand(piece, "other", digest)) == digest
    assert asked == ["one"] * 3


def test_one_wrong_part_spoils_a_piece(make: Any, listing: Listing) -> None:
    def read(node: str, _: int, offset: int, length: int) -> memoryview:
        data = bytearray(content(listing)[offset : offset + length])
        data[0] ^= node == "liar" and offset == 300
        return memoryview(data)

    transfer, piece = make(read), number(listing)
    digest = transfer._store.digest(listing, piece, hashlib.sha256(content(listing)).hexdigest())
    with pytest.raises(_NotGivenError) as caught:
        transfer._fetched(Errand(piece, "liar", digest))
    assert not caught.value.gone
    assert piece not in transfer._store.held(listing)[0]
    assert len(transfer.brought.refused) == 1
    assert transfer._fetched(Errand(piece, "honest", digest)) == digest
    assert here(transfer, listing) == content(listing)


def test_a_slow_errand_is_heard_of(make: Any, listing: Listing, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def read(_: str, __: int, offset: int, length: int) -> memoryview:
        now[0] += 0.4 * HANG_S
        return memoryview(content(listing)[offset : offset + length])

    transfer = make(read)
    said: list[tuple[Any, ...]] = []
    monkeypatch.setattr(transfer, "_ask", lambda *words: said.append(words))
    monkeypatch.setattr("orchestrator.weights.transfer.time.monotonic", lambda: now[0])
    transfer._fetched(Errand(number(listing), "slow", ""))
    assert said == [("goes_on", number(listing))]


class Away:
    """A directory whose node is gone at first."""

    def __init__(self, faults: list[Exception]) -> None:
        self.faults = faults
        self.join = SimpleNamespace(remote=lambda *arguments: arguments)

    def get(self, call: Any, timeout: float) -> Any:
        if self.faults:
            raise self.faults.pop()
        return call


@pytest.mark.parametrize("fault", [ActorUnavailableError("gone", None), GetTimeoutError("late")])
def test_a_directory_that_is_away_is_asked_again(fault: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    away = Away([fault] * 5)
    monkeypatch.setattr(directory.ray, "get", away.get)
    monkeypatch.setattr(directory.time, "sleep", lambda _: None)
    assert directory.ask(away, "join", "swarm", "node") == ("swarm", "node")
    assert not away.faults


def test_a_directory_that_stays_away_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    away, clock = Away([GetTimeoutError("late")] * 100), iter(range(0, 100_000, 100))
    monkeypatch.setattr(directory.ray, "get", away.get)
    monkeypatch.setattr(directory, "time", SimpleNamespace(monotonic=lambda: next(clock), sleep=lambda _: None))
    with pytest.raises(GetTimeoutError):
        directory.ask(away, "join")
    assert len(away.faults) > 90
