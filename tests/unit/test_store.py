"""The durable store: whole bundles or none, and nothing that was published is lost."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from orchestrator.errors import ConfigError
from orchestrator.graph_cache import bundle, store
from orchestrator.graph_cache.store import Store

HOUR = store.GRACE_S


def data_of(found: Store, key: str = "k", name: str = "") -> bytes | None:
    loaded = found.load(key, name)
    return None if loaded is None else loaded.data


def age(folder: Path, seconds: float) -> None:
    """As if all that is there were older."""
    for file in folder.iterdir():
        then = file.stat().st_mtime - seconds
        os.utime(file, (then, then))


def test_the_newest_bundle_is_served(tmp_path: Path) -> None:
    found = Store(str(tmp_path))
    assert found.load("k") is None
    found.save("k", 1, b"one")
    found.save("k", 10, b"ten")
    found.save("k", 2, b"a late writer")
    assert data_of(found) == b"ten"
    assert dict(found.entries())["k"]["generation"] == 10
    found.delete("k")
    found.delete("k")
    assert found.load("k") is None
    assert not list(found.entries())


def test_two_writers_of_one_generation_both_keep_what_they_wrote(tmp_path: Path) -> None:
    one, other = Store(str(tmp_path)), Store(str(tmp_path))
    names = [one.save("k", 1, b"one"), other.save("k", 1, b"other")]
    assert [data_of(one, name=name) for name in names] == [b"one", b"other"]
    assert data_of(one) == data_of(other)


def test_what_was_succeeded_long_ago_is_deleted(tmp_path: Path) -> None:
    found = Store(str(tmp_path))
    found.save("k", 1, b"one")
    (tmp_path / "k" / "2-dead.bundle.tmp").write_bytes(b"tw")
    found.save("k", 2, b"two")
    found.save("k", 3, b"three")
    assert len(list((tmp_path / "k").iterdir())) == 4  # a reader may be at it
    age(tmp_path / "k", HOUR + 60)
    found.save("k", 4, b"four")
    assert sorted(f.read_bytes() for f in (tmp_path / "k").iterdir()) == [b"four", b"three"]


def test_the_newest_is_never_deleted_however_old(tmp_path: Path) -> None:
    found = Store(str(tmp_path))
    found.save("k", 5, b"five")
    age(tmp_path / "k", 1000 * HOUR)
    mine = found.save("k", 2, b"late")
    assert data_of(found) == b"five"
    assert data_of(found, name=mine) == b"late"


def test_a_publisher_killed_while_it_writes_changes_nothing(tmp_path: Path) -> None:
    found = Store(str(tmp_path))
    found.save("k", 1, b"one")
    (tmp_path / "k" / "2-dead.bundle.tmp").write_bytes(b"tw")
    assert data_of(found) == b"one"


@pytest.mark.parametrize("name", ["latest.json", "x-1.bundle", "-1.bundle", "9.bundle", "²-1.bundle", "9-1.bundle.tmp"])
def test_what_is_no_bundle_of_ours_does_not_count(tmp_path: Path, name: str) -> None:
    found = Store(str(tmp_path))
    found.save("k", 1, b"one")
    (tmp_path / "k" / name).write_bytes(b"nine")
    assert data_of(found) == b"one"


def test_an_entry_of_the_older_layout_is_read(tmp_path: Path) -> None:
    (tmp_path / "graphs" / "k").mkdir(parents=True)
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "model").write_bytes(b"graph")
    known = {"key": "k", "factors": {"vllm": "1"}, "created": 1.0, "publisher": "replica-0"}
    data = bundle.pack(tmp_path / "work", [tmp_path / "work"], b"k" * 32, known)
    (tmp_path / "graphs" / "k" / "3-0a1b2c3d.bundle").write_bytes(data)
    (tmp_path / "graphs" / "k" / "latest.json").write_text('{"bundle": "gone.bundle"}')
    header = Store(str(tmp_path / "graphs")).header("k")
    assert header is not None
    assert (header["generation"], header["factors"], header["bytes"]) == (3, {"vllm": "1"}, len(data))


def test_a_reader_looks_again_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it found in the listing is gone when it opens it; by then there is another."""
    found = Store(str(tmp_path))
    found.save("k", 1, b"one")
    listed, listings = found._files, []

    def files(key: str) -> list[object]:
        listings.append(listed(key))
        if len(listings) == 1:
            found.delete("k")
            found.save("k", 2, b"two")
        return listings[-1]

    monkeypatch.setattr(found, "_files", files)
    monkeypatch.setattr(found, "_tidy", lambda *_: None)
    assert data_of(found) == b"two"


@pytest.mark.parametrize("data", [b"", b"ORCHGRAPH1", bundle.MAGIC + b"\xff" * 40, bundle.MAGIC + b"\0\0\0\2[]"])
def test_a_damaged_bundle_has_a_header_without_words(tmp_path: Path, data: bytes) -> None:
    found = Store(str(tmp_path))
    name = found.save("k", 1, data)
    assert found.header("k") == {"bytes": len(data), "bundle": name, "generation": 1}


def test_an_unknown_kind_of_store_is_one_line() -> None:
    with pytest.raises(ConfigError, match=r"graph_cache\.store=ftp://x"):
        Store("ftp://x")
