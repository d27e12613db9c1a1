"""The durable store: whole bundles or none."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.errors import ConfigError
from orchestrator.graph_cache.store import Store


def test_the_newest_bundle_is_served_and_the_old_one_gone(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    assert store.load("k") is None
    store.save("k", 1, b"one", {"bytes": 3})
    store.save("k", 2, b"two", {"bytes": 3})
    assert store.load("k") == b"two"
    assert dict(store.entries())["k"]["generation"] == 2
    assert len(list((tmp_path / "k").glob("*.bundle"))) == 1
    store.delete("k")
    assert store.load("k") is None
    assert not list(store.entries())


def test_a_publisher_killed_before_the_pointer_changes_nothing(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.save("k", 1, b"one", {})
    (tmp_path / "k" / "2-dead.bundle.abcd.tmp").write_bytes(b"tw")
    (tmp_path / "k" / "2-dead.bundle").write_bytes(b"two")
    assert store.load("k") == b"one"


@pytest.mark.parametrize("pointer", ["", "{", "[]", '{"bundle": "../../etc/passwd"}', '{"bundle": "gone.bundle"}'])
def test_a_broken_pointer_is_a_miss(tmp_path: Path, pointer: str) -> None:
    store = Store(str(tmp_path))
    store.save("k", 1, b"one", {})
    (tmp_path / "k" / "latest.json").write_text(pointer)
    assert store.load("k") is None


def test_an_unknown_kind_of_store_is_one_line() -> None:
    with pytest.raises(ConfigError, match=r"graph_cache\.store=ftp://x"):
        Store("ftp://x")
