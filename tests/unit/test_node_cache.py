"""One installed copy per node: linked, bounded, and believed only where it is ours and closed to others."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest

from orchestrator.graph_cache import bundle
from orchestrator.graph_cache.node_cache import NodeCopies, name_of

LIMITS = bundle.Limits(1 << 20, 100)


def payload(content: bytes) -> memoryview:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        info = tarfile.TarInfo("graphs/model")
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
    return memoryview(buffer.getvalue())


class Fetch:
    def __init__(self, content: bytes) -> None:
        self.content, self.calls = content, 0

    def __call__(self) -> memoryview:
        self.calls += 1
        return payload(self.content)


def test_the_second_replica_gets_a_link_and_fetches_nothing(tmp_path: Path) -> None:
    copies, fetch = NodeCopies(str(tmp_path / "node"), 1 << 20), Fetch(b"graphs")
    assert copies.link("a", tmp_path / "one", fetch, LIMITS)
    assert not copies.link("a", tmp_path / "two", fetch, LIMITS)
    assert fetch.calls == 1
    first, second = (tmp_path / root / "graphs" / "model" for root in ("one", "two"))
    assert second.read_bytes() == b"graphs"
    assert first.stat().st_ino == second.stat().st_ino
    first.unlink()  # a replica's end takes nothing from the others
    assert second.read_bytes() == b"graphs"
    assert not copies.link("a", tmp_path / "three", fetch, LIMITS)


def test_a_copy_that_others_may_write_is_not_believed(tmp_path: Path) -> None:
    node, fetch = tmp_path / "node", Fetch(b"good")
    (node / "a" / "graphs").mkdir(parents=True)
    node.chmod(0o700)
    (node / "a").chmod(0o777)
    (node / "a" / "graphs" / "model").write_bytes(b"planted")
    assert NodeCopies(str(node), 1 << 20).link("a", tmp_path / "one", fetch, LIMITS)
    assert (tmp_path / "one" / "graphs" / "model").read_bytes() == b"good"


@pytest.mark.parametrize("kind", ["open to others", "a file", "a link"])
def test_a_node_folder_that_is_not_ours_alone_is_not_used(kind: str, tmp_path: Path) -> None:
    node = tmp_path / "node"
    if kind == "open to others":
        node.mkdir()
        node.chmod(0o777)
    elif kind == "a file":
        node.write_text("x")
    else:
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        node.symlink_to(tmp_path / "elsewhere")
    assert NodeCopies(str(node), 1 << 20).link("a", tmp_path / "one", Fetch(b"graphs"), LIMITS)
    assert (tmp_path / "one" / "graphs" / "model").read_bytes() == b"graphs"
    if kind != "a file":
        assert not [p for p in node.iterdir() if p.is_dir()]


def test_what_was_used_least_recently_goes_first(tmp_path: Path) -> None:
    copies = NodeCopies(str(tmp_path / "node"), 250)
    for age, name in ((300, "a"), (200, "b")):
        copies.link(name, tmp_path / name, Fetch(b"x" * 100), LIMITS)
        os.utime(tmp_path / "node" / name, (age, age))
    copies.link("a", tmp_path / "again", Fetch(b""), LIMITS)  # now b is the oldest
    copies.link("c", tmp_path / "c", Fetch(b"x" * 100), LIMITS)
    kept = {p.name for p in (tmp_path / "node").iterdir() if p.is_dir()}
    assert kept == {"a", "c"}
    assert (tmp_path / "b" / "graphs" / "model").exists()


def test_a_copys_name_depends_on_the_signing_key() -> None:
    assert name_of("00", b"one key of many") != name_of("00", b"another key") != name_of("01", b"another key")
