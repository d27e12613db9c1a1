"""Bundles: what is packed comes back whole, and nothing that is not authentic is ever opened."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.errors import ArtifactRefused, ConfigError
from orchestrator.graph_cache import bundle, packing
from orchestrator.graph_cache.bundle import Limits, Manifest

KEY = b"k" * 32
LIMITS = Limits(1 << 20, 100)
KNOWN = {"key": "abc", "factors": {"vllm": "0.32"}, "created": 1.0, "publisher": "replica-0", "facts": {}}


def packed(root: Path, files: dict[str, bytes], key: bytes = KEY) -> bytes:
    for name, content in files.items():
        (root / "graphs" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "graphs" / name).write_bytes(content)
    return bundle.pack(root, [root / "graphs"], key, KNOWN).tobytes()


def opened(data: bytes, root: Path, key: str = "abc", limits: Limits = LIMITS) -> Manifest:
    manifest, payload = bundle.verify(memoryview(data), KEY, key, limits)
    bundle.install(payload, root, limits)
    return manifest


def signed(members: list[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    """A bundle that is rightly signed, whatever it holds: what a publisher gone bad could make."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for info, content in members:
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    payload = buffer.getvalue()
    sums = {"payload_sha256": hashlib.sha256(payload).hexdigest(), "payload_bytes": len(payload), "files": 1}
    header = json.dumps(asdict(Manifest(**KNOWN, **sums)), sort_keys=True).encode()
    return b"".join((bundle.MAGIC, len(header).to_bytes(4, "big"), header, bundle._sign(KEY, header), payload))


names = st.from_regex(r"[a-z]{1,8}(/[a-z]{1,8}){0,3}\.so", fullmatch=True)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
@given(st.dictionaries(names, st.binary(max_size=2000), min_size=1, max_size=8))
def test_what_is_packed_comes_back(tmp_path_factory, files: dict[str, bytes]) -> None:
    source, target = tmp_path_factory.mktemp("a"), tmp_path_factory.mktemp("b")
    manifest = opened(packed(source, files), target)
    assert manifest.files == len(files)
    assert {p.relative_to(target / "graphs").as_posix(): p.read_bytes() for p in target.rglob("*.so")} == files
    assert not [p for p in target.rglob("*") if p.stat().st_mode & 0o077]
    assert not list(target.glob(".install-*"))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(data=st.data())
def test_any_flipped_bit_and_any_cut_is_refused(tmp_path_factory, data) -> None:
    good = packed(tmp_path_factory.mktemp("a"), {"model": b"code" * 50})
    bad = bytearray(good)
    if data.draw(st.booleans()):
        at = data.draw(st.integers(0, len(good) - 1))
        bad[at] ^= 1 << data.draw(st.integers(0, 7))
    else:
        del bad[data.draw(st.integers(0, len(good) - 1)) :]
    target = tmp_path_factory.mktemp("b")
    with pytest.raises(ArtifactRefused):
        opened(bytes(bad), target)
    assert not list(target.iterdir())


def test_another_clusters_signature_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactRefused, match="signature is not by this cluster's key"):
        opened(packed(tmp_path, {"model": b"x"}, key=b"z" * 32), tmp_path / "out")


def test_a_bundle_serves_only_its_own_key(tmp_path: Path) -> None:
    with pytest.raises(ArtifactRefused, match="belongs to key abc"):
        opened(packed(tmp_path, {"model": b"x"}), tmp_path / "out", key="def")


def test_ceilings_hold(tmp_path: Path) -> None:
    data = packed(tmp_path, {"model": b"x" * 5000})
    with pytest.raises(ArtifactRefused, match="over the ceiling"):
        opened(data, tmp_path / "out", limits=Limits(1000, 100))
    lying = signed([(tarfile.TarInfo(f"f{i}"), b"x") for i in range(5)])
    with pytest.raises(ArtifactRefused, match="more than the ceiling"):
        opened(lying, tmp_path / "out", limits=Limits(1 << 20, 3))


@pytest.mark.parametrize("name", ["/etc/passwd", "../up", "a/../../up", ""])
def test_no_member_leaves_the_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(ArtifactRefused):
        opened(signed([(tarfile.TarInfo(name), b"x")]), tmp_path / "out")
    assert not (tmp_path / "up").exists()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_no_links_and_no_devices(tmp_path: Path, kind: bytes) -> None:
    info = tarfile.TarInfo("model")
    info.type, info.linkname = kind, "/etc/passwd"
    with pytest.raises(ArtifactRefused, match="not a plain file"):
        opened(signed([(info, b"")]), tmp_path / "out")


def test_links_are_not_packed(tmp_path: Path) -> None:
    (tmp_path / "graphs").mkdir()
    (tmp_path / "graphs" / "link").symlink_to("/etc/passwd")
    manifest = opened(packed(tmp_path, {"model": b"x"}), tmp_path / "out")
    assert manifest.files == 1


def test_the_signing_key_is_made_once_and_private(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv(bundle.KEY_ENV, raising=False)
    file = tmp_path / "state" / "signing.key"
    key = bundle.signing_key(str(file))
    assert bundle.signing_key(str(file)) == key
    assert file.stat().st_mode & 0o777 == 0o600
    os.chmod(file, 0o644)
    with pytest.raises(ConfigError, match="can be read by others"):
        bundle.signing_key(str(file))


def test_a_short_key_is_refused(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv(bundle.KEY_ENV, "abcd")
    with pytest.raises(ConfigError, match="32 hex digits"):
        bundle.signing_key(str(tmp_path / "key"))


def test_what_is_still_being_written_is_left_out(tmp_path: Path, monkeypatch) -> None:
    """The engine runs while its graphs are packed: temporary names are skipped, and a file may be gone by its turn, or
    shorter."""
    written = {"model": b"m", "a/tmp.pid_7_x/kernel.json": b"", "tmp.pid_8_y": b"", "a/.7.8.tmp": b"", "b.so": b"b"}
    read, graphs = packing._read, tmp_path / "graphs"

    def meanwhile(file: Path, into: memoryview) -> bool:
        (graphs / "c.so").unlink(missing_ok=True)
        (graphs / "d.so").write_bytes(b"d")
        return read(file, into)

    monkeypatch.setattr(packing, "_read", meanwhile)
    data = packed(tmp_path, {**written, "c.so": b"c", "d.so": b"dd"})
    assert opened(data, tmp_path / "target").files == 2
    assert sorted(f.name for f in (tmp_path / "target").rglob("*") if f.is_file()) == ["b.so", "model"]
