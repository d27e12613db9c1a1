"""What a start promises, whoever hosts it and whatever engine it starts: each thing that can go wrong, and its outcome.

A host is a fleet's replica or Ray Serve LLM's engine class. `POINTS` says for each fault how a start ends, and `check`
holds a host to it. tests/unit/test_start.py has both hosts over fakes, tests/engine/test_start.py over real vLLM.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pytest

from orchestrator import timeline
from orchestrator.engine.start_report import StartReport
from orchestrator.errors import EngineStartError, OrchestratorError
from orchestrator.graph_cache.restore_result import Outcome, Receipt
from orchestrator.weights.transfer import Brought


class Planted(Exception):
    """What the suite makes go wrong."""


@dataclass
class Cache:
    """A graph cache that leads, or restores nothing at all, and remembers what it was asked."""

    restored: bool = False
    asked: list[str] = field(default_factory=list)
    leads: bool = False

    def restore(self, factors: Mapping[str, str], cache_root: Path, unshared: str) -> Receipt:
        self.asked.append("restore")
        assert factors
        self.leads = not self.restored
        return Receipt(Outcome.hit if self.restored else Outcome.compiled, key="k")

    def publish(self, receipt: Receipt, facts: timeline.EngineFacts, cache_root: Path) -> Receipt:
        self.asked.append("publish")
        self.leads = False
        return Receipt(receipt.outcome, receipt.reason, receipt.key, published=not self.restored)

    def abandon(self, receipt: Receipt) -> None:
        self.asked.append("abandon")
        self.leads = False


@dataclass
class Others:
    """The other nodes of a replica."""

    asked: list[str] = field(default_factory=list)

    def prepare(self, key: str) -> list[bool]:
        self.asked.append("prepare")
        return [bool(key)]

    def read_events(self) -> None:
        self.asked.append("read_events")

    def gather(self, key: str) -> None:
        self.asked.append("gather")

    def clean(self) -> None:
        self.asked.append("clean")


@dataclass
class Files:
    """A model that comes to the replica's node."""

    path: str = "m"
    brought: Brought | None = None
    asked: list[str] = field(default_factory=list)

    def configuration(self) -> None:
        self.asked.append("configuration")

    def all(self) -> None:
        self.asked.append("all")
        self.brought = Brought(origin_bytes=1)


class Host(Protocol):
    """One start of a host's, over fakes or over vLLM."""

    cache: Cache
    others: Others
    files: Files
    events: timeline.EventLog

    def target(self, step: str) -> tuple[Any, str]:
        """The object that takes a step, and the name of its method."""

    def start(self) -> StartReport:
        """Start, up to the first token."""

    def left(self) -> list[str]:
        """What is left of a start that failed, or of an engine that was stopped."""

    def stop(self) -> None:
        """Stop the engine."""


def step_of(host: Host, step: str, own: Mapping[str, tuple[Any, str]]) -> tuple[Any, str]:
    """A host's own way to take a step; cache, other nodes and model files have methods of the steps' names."""
    owner: Any = host.cache if step in ("restore", "publish") else host.others
    return own.get(step) or (host.files if step in ("configuration", "all") else owner, step)


@dataclass(frozen=True)
class Point:
    """A step, when it fails, and how the start ends.

    Attributes:
        step: one that a host's `target` knows, or a circumstance: "clock", "disk", "torn".
        when: "before" the step does its work, or "after" it did.
        fails: the start fails with EngineStartError; else it succeeds.
        outcome: of the receipt, where the start succeeds.
        reason: in the receipt, likewise.
        restored: graphs are there.
        fails_in: hosts that fail though `fails` says no, or the other way round.
    """

    step: str
    when: str
    fails: bool = False
    outcome: Outcome = Outcome.compiled
    reason: str = ""
    restored: bool = False
    fails_in: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.when}-{self.step}{'-restored' if self.restored else ''}"


POINTS = (
    Point("nothing", "before"),
    Point("nothing", "before", outcome=Outcome.hit, restored=True),
    # a fleet's replica makes the configuration itself: what vLLM refuses is a failed start
    Point("factors", "before", outcome=Outcome.failed, reason="no compile key: Planted", fails_in=("fleet",)),
    Point("factors", "after", outcome=Outcome.failed, reason="no compile key: Planted", fails_in=("fleet",)),
    Point("restore", "before", outcome=Outcome.failed, reason="Planted"),
    Point("restore", "after", outcome=Outcome.failed, reason="Planted"),
    Point("prepare", "before", reason="the other nodes are not ready: Planted"),
    Point("prepare", "before", outcome=Outcome.hit, reason="the other nodes are not ready: Planted", restored=True),
    Point("prepare", "after", outcome=Outcome.hit, reason="the other nodes are not ready: Planted", restored=True),
    Point("configuration", "before", fails=True),
    Point("configuration", "after", fails=True),
    Point("all", "before", fails=True),
    Point("all", "after", fails=True, restored=True),
    Point("begin", "before", fails=True),
    Point("begin", "after", fails=True),
    Point("build", "before", fails=True),
    Point("build", "after", fails=True),
    Point("started", "before"),
    Point("started", "after"),
    Point("token", "before", fails=True),
    Point("read_events", "before", reason="not published: Planted"),
    Point("read_events", "after", reason="not published: Planted"),
    Point("gather", "before", reason="not published: Planted"),
    Point("gather", "after", reason="not published: Planted"),
    Point("publish", "before", reason="not published: Planted"),
    Point("publish", "after", reason="not published: Planted"),
    Point("publish", "before", outcome=Outcome.hit, reason="not published: Planted", restored=True),
    Point("clock", "before"),
    Point("clock", "after"),
    Point("disk", "before"),
    Point("torn", "before"),
)


def check(make: Callable[[], Host], name: str, point: Point, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a host, plant the fault, start, and hold the end against the point's outcome."""
    began = time.monotonic()
    host = make()
    host.cache.restored = point.restored
    plant(host, point, monkeypatch)
    fails = point.fails != (name in point.fails_in)
    if fails:
        with pytest.raises((OrchestratorError, Planted)) as caught:
            host.start()
        if point.step in ("build", "begin"):
            assert isinstance(caught.value, EngineStartError)
            assert "Planted" in caught.value.cause
        # a host that publishes before its first token has nothing to abandon any more
        assert {"abandon", "publish"} & set(host.cache.asked) or "restore" not in host.cache.asked
        assert "publish" not in host.cache.asked or point.step == "token"
    else:
        report = host.start()
        took = time.monotonic() - began
        assert report.receipt.outcome is point.outcome
        assert not {"model", "node", "since", "expected"} & set(report.as_dict())  # the status board's own words
        assert point.reason in report.receipt.reason
        assert bool(report.receipt.reason) == bool(point.reason)
        assert 0.0 < report.first_token_s <= took
        if point.step not in ("disk", "torn"):  # which cost the timeline
            assert sum(p.seconds for p in report.phases) == pytest.approx(report.first_token_s)
            assert all(p.seconds >= 0.0 for p in report.phases)
        host.stop()
    assert not host.cache.leads or point.step == "restore"  # a lease that nobody is told of ends by itself
    assert host.left() == []


def plant(host: Host, point: Point, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a step go wrong."""
    if point.step == "clock":
        by = -3600.0 if point.when == "before" else 3600.0
        true = time.time
        began = true()
        monkeypatch.setattr(time, "time", lambda: true() + (by if true() - began > 0.01 else 0.0))
    elif point.step == "disk":
        monkeypatch.setattr("orchestrator.timeline.events.os.write", _full)
    elif point.step == "torn":
        with open(host.events.file, "a") as file:
            file.write('{"t": 1.0, "kind": "mark"\n{"t": 1.0, "unknown": 1}\nnull\n')
    elif point.step != "nothing":
        owner, name = host.target(point.step)
        monkeypatch.setattr(owner, name, _failing(getattr(owner, name), point.when))


def _full(*_: Any) -> int:
    raise OSError(errno.ENOSPC, "No space left on device")


def _failing(step: Callable[..., Any], when: str) -> Callable[..., Any]:
    def failing(*args: Any, **kwargs: Any) -> Any:
        if when == "after":
            step(*args, **kwargs)
        raise Planted(f"{when} {getattr(step, '__name__', 'it')}")

    return failing
