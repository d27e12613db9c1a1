"""The status page, from what replicas told."""

from __future__ import annotations

import time

from orchestrator.serve import status
from orchestrator.serve.status_board import Board


def report(seconds: float) -> dict:
    phases = [
        {"name": "process", "start": 0.0, "seconds": seconds - 1},
        {"name": "weights", "start": 1, "seconds": 1.0},
    ]
    return {
        "replica": "r<1>", "model": "m", "node": "n", "first_token_s": seconds, "receipt": {"outcome": "hit"},
        "phases": phases, "engine": {"compiled": 0}, "size": {"layers": 2, "weight_bytes": 0, "ranks": 1},
    }  # fmt: skip


def test_replicas_and_graphs_are_shown_and_escaped() -> None:
    graph = {"key": "abcdef0123456789", "bytes": 3 << 20, "architecture": "LlamaForCausalLM", "publisher": "r0"}
    page = status.page({"replicas": [{"model": "m", **report(4.0)}], "graphs": [graph]})
    assert "r&lt;1&gt;" in page
    assert "r<1>" not in page
    assert "4.0 s" in page
    assert "width: 75.0%" in page
    assert "3.0 MiB" in page
    assert "abcdef012345" in page


def test_an_empty_service_has_a_page_too() -> None:
    page = status.page({"replicas": [], "graphs": [], "waiting": {"model:a": 3}})
    assert "No replica is ready." in page
    assert "model:a has no replica; requests that wait for the first: 3" in page


def test_a_start_is_shown_until_it_is_over_or_silent(monkeypatch) -> None:
    board, start = Board(), {"model": "m", "node": "n", "phase": "after 'weights'", "seconds": 12.3}
    start |= {"size": None, "restored": None}
    for name in ("a", "b"):
        board.tell_start({"replica": name, **start})
    page = status.page({"replicas": [], "graphs": [], "starting": board.starts()})
    assert "b (m) starts: after &#39;weights&#39;, 12 s so far" in page
    board.tell({**report(1.0), "replica": "a"})
    assert [found["replica"] for found in board.starts()] == ["b"]
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 30)  # b was killed
    assert not board.starts()
    assert [found["replica"] for found in board.replicas()] == ["a"]


def test_what_a_start_is_expected_to_take_is_shown_then_and_afterwards() -> None:
    board = Board()
    assert board.tell({**report(8.0), "replica": "a"}) is None
    start = {"replica": "b", "model": "m", "node": "n", "phase": "weights", "seconds": 3.0, "size": report(1.0)["size"]}
    board.tell_start({**start, "restored": None})
    board.tell_start({**start, "restored": True})
    (shown,) = board.starts()
    assert shown["expected"]["seconds"] == board.expected("m", None)["seconds"] > 0
    assert ", 3 s so far, of about " in status.page({"replicas": [], "graphs": [], "starting": board.starts()})
    told = {**report(9.0), "replica": "b"}
    assert board.tell(told) == shown["expected"]
    assert board.tell({**told, "expected": None}) == shown["expected"]  # as long as this board lives
    assert Board().tell({**told, "expected": shown["expected"]}) == shown["expected"]  # and by a new one
    page = status.page({"replicas": board.replicas(), "graphs": []})
    assert f"{shown['expected']['seconds']:.1f} s" in page


def test_a_replica_that_falls_silent_is_forgotten(monkeypatch) -> None:
    board = Board()
    board.tell({**report(1.0), "replica": "a"})
    board.tell({**report(2.0), "replica": "b"})
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 50)
    board.tell({**report(2.0), "replica": "b"})
    monkeypatch.setattr(time, "monotonic", lambda: now + 80)
    assert [r["first_token_s"] for r in board.replicas()] == [2.0]


def test_a_place_is_claimed_by_one_and_free_again(monkeypatch) -> None:
    board = Board()
    assert board.claim(["name a", "route /"], "first")
    assert board.claim(["name a", "route /"], "first")  # its first answer was lost
    assert not board.claim(["name b", "route /"], "second")
    assert board.claim(["name b", "route /b"], "second")  # of the refused claim nothing was kept
    board.give_up("first")
    assert board.claim(["name a", "route /"], "third")
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 3600)
    assert board.claim(["name a"], "fourth")  # the third was killed
