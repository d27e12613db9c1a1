"""Signed bundles of compiled graphs: pack, verify, install.

Compiled artifacts are unpickled by vLLM, and that runs code. So a bundle is opened only after its signature was
checked with a key that lives outside the store, it is bound to its compile key, and it is unpacked without links,
without paths that leave the folder, and under ceilings, into a staging folder that is renamed when complete.

Layout: MAGIC, header length (4 bytes, big endian), header (JSON), HMAC-SHA256 of the header, tar payload. The header
carries the payload's SHA-256 and size.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import shutil
import tarfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa

from orchestrator.errors import ArtifactRefused, ConfigError
from orchestrator.graph_cache.folders import make_private
from orchestrator.graph_cache.packing import THREADS, archive

MAGIC = b"ORCHGRAPH1"
_MAX_HEADER = 1 << 20
_SIGNATURE = 32  # bytes
HEADER_WITHIN = 1 << 18  # bytes from a bundle's beginning that hold any real header
STAGING = ".install-"  # then the folder's name: what is left of a killed process is known by it
KEY_ENV = "ORCHESTRATOR_SIGNING_KEY"


@dataclass(frozen=True)
class Manifest:
    """What a bundle says about itself, under its signature."""

    key: str
    factors: Mapping[str, str]
    payload_sha256: str
    payload_bytes: int
    files: int
    created: float
    publisher: str
    facts: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Limits:
    """Ceilings on what is unpacked."""

    max_bytes: int
    max_files: int


def signing_key(file: str) -> bytes:
    """The cluster's signing key: from ORCHESTRATOR_SIGNING_KEY (hex), else from a file that is made on first use.

    Raises:
        ConfigError: the key is too short, or its file can be read by others.
    """
    if from_env := os.environ.get(KEY_ENV):
        try:
            key = bytes.fromhex(from_env)
        except ValueError:
            key = b""
        if len(key) < 16:
            raise ConfigError(f"{KEY_ENV} has to be at least 32 hex digits.", where=KEY_ENV)
        return key
    path = Path(file).expanduser()
    make_private(path.parent)
    staging = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    if not path.exists():
        handle = os.open(staging, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as stream:
            stream.write(secrets.token_bytes(32))
        try:
            os.link(staging, path)  # fails if another process was first: then theirs is the key
        except FileExistsError:
            pass
        finally:
            staging.unlink()
    if path.stat().st_mode & 0o077:
        raise ConfigError(
            f"The signing key {path} can be read by others.", where="graph_cache.key_file", hint=f"chmod 600 {path}"
        )
    key = path.read_bytes()
    if len(key) < 16:
        raise ConfigError(f"The signing key {path} is too short.", where="graph_cache.key_file", hint="Delete it.")
    return key


def pack(
    root: Path, folders: Sequence[Path], key: bytes, manifest: Mapping[str, object]
) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Pack folders below `root` into a signed bundle.

    Args:
        root: the cache root; paths inside the bundle are relative to it.
        folders: what to pack; only regular files are taken.
        key: the signing key.
        manifest: the Manifest fields that the caller knows.

    Returns:
        The bundle's bytes, shape (length,).
    """
    most = len(MAGIC) + 4 + _MAX_HEADER + _SIGNATURE
    whole, count = archive(root, folders, free=most)
    payload = whole.data[most:]
    facts = {"payload_sha256": hashlib.sha256(payload).hexdigest(), "payload_bytes": len(payload), "files": count}
    header = json.dumps(asdict(Manifest(**{**manifest, **facts})), sort_keys=True).encode()  # type: ignore[arg-type]
    before = b"".join((MAGIC, len(header).to_bytes(4, "big"), header, _sign(key, header)))
    whole.data[most - len(before) : most] = before
    return whole[most - len(before) :]


def manifest_of(data: memoryview, key: bytes | None = None) -> Manifest:
    """What a bundle says about itself; with `key`, only if it was signed with that.

    Raises:
        ArtifactRefused: it is cut off, or not signed by the key.
    """
    header, signature, _ = _parts(data)
    if key is not None and not hmac.compare_digest(_sign(key, header), signature):
        raise _refused("its signature is not by this cluster's key")
    return Manifest(**json.loads(header))


def unverified_header(beginning: memoryview) -> dict[str, Any]:
    """What a bundle says about itself, for lists and reports; {} where it is damaged. Nothing here is authenticated."""
    start = len(MAGIC) + 4
    size = int.from_bytes(beginning[len(MAGIC) : start], "big")
    try:
        found = json.loads(bytes(beginning[start : start + size])) if bytes(beginning[: len(MAGIC)]) == MAGIC else {}
    except ValueError:
        return {}
    return found if isinstance(found, dict) and isinstance(found.get("factors", {}), dict) else {}


def verify(data: memoryview, key: bytes, expected_key: str, limits: Limits) -> tuple[Manifest, memoryview]:
    """Check signature, digest, size and compile key; returns the manifest and the still packed payload.

    Raises:
        ArtifactRefused: whatever is wrong, in one line; nothing was unpacked.
    """
    manifest, payload = manifest_of(data, key), _parts(data)[2]
    if manifest.payload_bytes > limits.max_bytes or manifest.files > limits.max_files:
        raise _refused(f"it is over the ceiling ({manifest.payload_bytes} bytes, {manifest.files} files)")
    if len(payload) != manifest.payload_bytes or hashlib.sha256(payload).hexdigest() != manifest.payload_sha256:
        raise _refused("its content does not match its signed digest")
    if manifest.key != expected_key:
        raise _refused(f"it belongs to key {manifest.key[:12]}, not {expected_key[:12]}")
    return manifest, payload


def _parts(data: memoryview) -> tuple[bytes, bytes, memoryview]:
    """Header, signature and payload."""
    start = len(MAGIC) + 4
    if len(data) < start or bytes(data[: len(MAGIC)]) != MAGIC:
        raise _refused("it is not a bundle, or is cut off")
    size = int.from_bytes(data[len(MAGIC) : start], "big")
    if size > _MAX_HEADER or len(data) < start + size + _SIGNATURE:
        raise _refused("its header is cut off or too large")
    end = start + size
    return bytes(data[start:end]), bytes(data[end : end + _SIGNATURE]), data[end + _SIGNATURE :]


def install(payload: memoryview, folder: Path, limits: Limits) -> None:
    """Unpack a verified payload into `folder`, whole or not at all.

    Files are unpacked into a folder beside it; a folder that does not exist yet then appears by one rename.

    Raises:
        ArtifactRefused: a member is a link or a device, leaves the folder, or the ceilings are passed.
        OSError: the disk is full or the folder cannot be written.
    """
    make_private(folder.parent)
    staging = folder.with_name(f"{STAGING}{folder.name}-{secrets.token_hex(4)}")
    staging.mkdir(mode=0o700)
    try:
        _unpack(payload, staging, limits)
        if not folder.exists():
            staging.rename(folder)
            return
        for source in sorted(staging.rglob("*")):
            if source.is_file():
                target = folder / source.relative_to(staging)
                make_private(target.parent)
                source.replace(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _unpack(payload: memoryview, folder: Path, limits: Limits) -> None:
    total = 0
    files: list[tuple[Path, int, memoryview]] = []
    stream = pa.PythonFile(pa.BufferReader(pa.py_buffer(payload)), mode="r")  # reads without a copy of the whole
    with tarfile.open(fileobj=stream, mode="r:") as tar:  # type: ignore[call-overload]
        for member in tar:
            path = PurePosixPath(member.name)
            if not member.isreg() or path.is_absolute() or ".." in path.parts or not path.parts:
                raise _refused(f"it holds {member.name!r}, which is not a plain file below the cache folder")
            total += member.size
            if total > limits.max_bytes or len(files) >= limits.max_files:
                raise _refused("it unpacks to more than the ceiling")
            content = payload[member.offset_data : member.offset_data + member.size]
            if len(content) != member.size:
                raise _refused(f"{member.name!r} is cut off")
            files.append((folder / path, 0o700 if member.mode & 0o100 else 0o600, content))
    for parent in {target.parent for target, _, _ in files}:
        make_private(parent)
    with ThreadPoolExecutor(THREADS) as threads:
        for _ in threads.map(_write, *zip(*files, strict=True)):
            pass


def _write(target: Path, mode: int, content: memoryview) -> None:
    with os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb", buffering=0) as out:
        while content:
            content = content[out.write(content) :]


def _sign(key: bytes, header: bytes) -> bytes:
    return hmac.new(key, MAGIC + header, hashlib.sha256).digest()


def _refused(reason: str) -> ArtifactRefused:
    return ArtifactRefused(f"A compiled artifact was refused: {reason}.", reason=reason)
