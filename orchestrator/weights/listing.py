"""What a model's origin has: its files, and the pieces that they travel in."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from functools import cached_property, lru_cache
from pathlib import PurePosixPath
from typing import Any

from pyarrow import fs

from orchestrator import paths
from orchestrator.errors import ModelError
from orchestrator.graph_cache.store import open_files
from orchestrator.models.folder import WEIGHTS

SMALL = 32 << 20  # bytes; a configuration or a tokenizer is smaller, and is needed before the weights are
# What vLLM does not read: other formats beside safetensors, a checkpoint's original, and what tools leave.
_NEVER = ("original/*", ".*", "*/.*", "*.onnx", "*.msgpack", "*.h5", "*.lock")
_MOST = 256  # pieces of a model, or a few more: each costs each node a question to the directory (bench=weights)
_BESIDE_SAFETENSORS = ("*.bin", "*.pt", "*.pth", "*.gguf")


@dataclass(frozen=True)
class File:
    """A file: its name below the model's folder, its bytes, and when it was changed (ns), where the origin says so."""

    name: str
    size: int
    changed_ns: int = 0


@dataclass(frozen=True)
class Piece:
    """A stretch of a file: its number among all of the model's, the file's name, first byte, and bytes."""

    number: int
    file: str
    offset: int
    length: int

    def __str__(self) -> str:
        return f"{self.file}, bytes {self.offset} to {self.offset + self.length}"


@dataclass(frozen=True)
class Listing:
    """One version of a model, as its origin listed it.

    Attributes:
        model: its name, for messages.
        origin: a folder, or a URI that pyarrow.fs knows (`s3://`, `gs://`, `hf://`).
        files: in the order of their names.
        piece_bytes: of each piece but a file's last.
        part_bytes: of a piece that are read, sent and written at a time.
    """

    model: str
    origin: str
    files: tuple[File, ...]
    piece_bytes: int
    part_bytes: int

    @cached_property
    def version(self) -> str:
        """A digest of where it is from and what is there; keys in the URI do not count."""
        known = [paths.shown(self.origin), [asdict(file) for file in self.files], self.piece_bytes]
        return hashlib.sha256(json.dumps(known).encode()).hexdigest()

    @cached_property
    def pieces(self) -> tuple[Piece, ...]:
        """All pieces, those of small files first."""
        ordered = sorted(self.files, key=lambda file: (file.size > SMALL, file.name))
        return tuple(Piece(i, *cut) for i, cut in enumerate(c for file in ordered for c in self._cuts(file)))

    @cached_property
    def small(self) -> int:
        """How many of the first pieces are small files'."""
        small = {file.name for file in self.files if file.size <= SMALL}
        return sum(piece.file in small for piece in self.pieces)

    @property
    def is_folder(self) -> bool:
        """Is its origin a folder?"""
        return "://" not in self.origin

    @property
    def bytes(self) -> int:
        """Of all files."""
        return sum(file.size for file in self.files)

    def parts(self, piece: Piece) -> Iterator[tuple[int, int]]:
        """Where each part of a piece begins, counted from the piece's begin, and how long it is."""
        for offset in range(0, piece.length, self.part_bytes):
            yield offset, min(self.part_bytes, piece.length - offset)

    def _cuts(self, file: File) -> Iterator[tuple[str, int, int]]:
        for offset in range(0, file.size, self.piece_bytes):
            yield file.name, offset, min(self.piece_bytes, file.size - offset)


def look(model: str, origin: str, part_bytes: int, *, weights: bool = True) -> Listing:
    """List an origin; no file is read.

    Args:
        model: the model's name, for messages.
        origin: a folder or a URI.
        part_bytes: what travels at a time. A piece is one part, and several where a model is large.
        weights: with the model's weights; without them vLLM makes some up.

    Raises:
        ModelError: it cannot be reached, or is no model.
    """
    try:
        files, root = open_files(origin)
        found = files.get_file_info(fs.FileSelector(root, recursive=True))
    except (OSError, ValueError, ImportError) as error:
        text = " ".join(paths.shown(str(error)).split())
        raise ModelError(
            f"{paths.shown(origin)} cannot be read: {text}", model=model, where="model.id",
            hint="Set model.id to a folder, or to s3://BUCKET/FOLDER, gs://… or a hub id.",
        ) from error  # fmt: skip
    listed = [
        File(info.path.removeprefix(root).strip("/"), info.size or 0, info.mtime_ns or 0)
        for info in found
        if info.type is fs.FileType.File
    ]
    if "config.json" not in {file.name for file in listed}:
        where = paths.shown(origin)
        raise ModelError(
            f"No config.json in {where}.", model=model, where="model.id", hint="Set model.id to a model's folder."
        )
    needed = [file for file in _needed(listed) if weights or not _is_one_of(file, tuple(WEIGHTS))]
    piece = piece_bytes(sum(file.size for file in needed), part_bytes)
    return Listing(model, origin, tuple(sorted(needed, key=lambda file: file.name)), piece, part_bytes)


def piece_bytes(size: int, part_bytes: int) -> int:
    """How large a piece of a model is: a part, or several where these would be too many."""
    return part_bytes * (math.ceil(size / part_bytes / _MOST) or 1)


def read(listing: Listing, piece: Piece) -> Iterator[bytes]:
    """Read a piece from the origin, part by part.

    Raises:
        OSError: it cannot be read, or the file is not the one that was listed.
    """
    files, root = _files(listing.origin)
    path = f"{root}/{piece.file}"
    known = next(file for file in listing.files if file.name == piece.file)
    (info,) = files.get_file_info([path])
    if (info.size or 0, info.mtime_ns or 0) != (known.size, known.changed_ns):
        raise OSError(f"{piece.file} was changed at its origin since it was listed")
    with _opened(files, path) as stream:
        stream.seek(piece.offset)
        for offset, length in listing.parts(piece):
            data = bytes(stream.read(length))
            if len(data) != length:
                raise OSError(f"{piece.file} ends {piece.length - offset - len(data)} bytes too early at its origin")
            yield data


@lru_cache(maxsize=16)
def _files(origin: str) -> tuple[fs.FileSystem, str]:
    """Opened once: an object store's client has connections that pieces share."""
    return open_files(origin)


def _opened(files: fs.FileSystem, path: str) -> Any:
    """A file to read pieces of, and no more: fsspec's own way (for the hub) reads five megabytes ahead."""
    if isinstance(files, fs.PyFileSystem) and isinstance(files.handler, fs.FSSpecHandler):
        return files.handler.fs.open(path, "rb", cache_type="none")
    return files.open_input_file(path)


def read_file(listing: Listing, name: str) -> bytes:
    """Read a whole file from the origin; for small ones. Raises OSError."""
    return b"".join(part for piece in listing.pieces if piece.file == name for part in read(listing, piece))


def _needed(files: list[File]) -> list[File]:
    """What vLLM reads, and nothing whose name leaves the folder."""
    safetensors = any(file.name.endswith(".safetensors") for file in files)
    never = (*_NEVER, *_BESIDE_SAFETENSORS) if safetensors else _NEVER
    return [file for file in files if ".." not in PurePosixPath(file.name).parts and not _is_one_of(file, never)]


def _is_one_of(file: File, patterns: Sequence[str]) -> bool:
    return any(fnmatch(file.name, pattern) for pattern in patterns)
