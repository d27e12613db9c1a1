"""Durable copies of bundles in a folder or an object store (pyarrow.fs: local, s3://, gs://).

The store is a log that is written once: one object for each bundle, under a name that nobody uses again, and no pointer
beside it. The newest name is the entry. So two writers never write the same object, and nobody needs compare-and-set:
pyarrow.fs offers none, as each kind of storage has its own. A late writer adds an older name, which changes nothing.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pyarrow import fs

from orchestrator.errors import ConfigError
from orchestrator.graph_cache import bundle

_ENDING = ".bundle"
_STAGING = ".tmp"
# How long what is not the newest any more stays: longer than a reader takes from a listing to the end of a bundle.
GRACE_S = 3600.0


@dataclass(frozen=True)
class Found:
    """An entry as it lies in the store: what it says about itself, and the bundle; neither is authenticated."""

    header: dict[str, Any]
    data: bytes


class Store:
    """`<root>/<key>/<generation>-<random>.bundle`; the highest generation is the entry.

    Args:
        uri: a local folder, or a URI that pyarrow.fs knows.

    Raises:
        ConfigError: the URI's kind is not known, or its file system cannot be reached.
    """

    def __init__(self, uri: str) -> None:
        try:
            self._fs, self._root = open_files(uri)
            self._stages = isinstance(
                self._fs, fs.LocalFileSystem
            )  # an object store shows an object when it is complete
            self._fs.create_dir(self._root, recursive=True)
        except (OSError, ValueError) as error:
            missing = _no_bucket(uri)
            what = f"There is no bucket {missing}." if missing else f"graph_cache.store={uri}: {error}"
            hint = "Create it, or name another one." if missing else ""
            raise ConfigError(what, where="graph_cache.store", hint=hint) from error

    def save(self, key: str, generation: int, data: Any) -> str:
        """Write a bundle under a name of its own, and delete what has been older for long.

        Returns:
            The name, for `load`.

        Raises:
            OSError: it was not written.
        """
        name = f"{generation}-{secrets.token_hex(8)}{_ENDING}"
        self._write(f"{self._root}/{key}/{name}", data)
        with suppress(OSError):  # it is written; the next writer tidies up
            self._tidy(key, name)
        return name

    def header(self, key: str, name: str = "") -> dict[str, Any] | None:
        """What the entry, or the bundle of that name, says about itself, with its name and generation; None if there
        is none."""
        newest = _newest(self._fs.get_file_info([f"{self._root}/{key}/{name}"]) if name else self._files(key))
        return None if newest is None else self._header(newest)

    def load(self, key: str, name: str = "") -> Found | None:
        """The entry, or the bundle of that name; None if it is not there."""
        for _ in range(1 if name else 2):  # what was listed may have been evicted since: look again, once
            path = f"{self._root}/{key}/{name}" if name else _path(_newest(self._files(key)))
            if path is None:
                return None
            try:
                with self._fs.open_input_stream(path) as stream:
                    data = bytes(stream.read())
            except OSError:
                continue
            return Found(_described(path, data, len(data)), data)
        return None

    def find(self, key: str, known: Mapping[str, Any], at_most: int) -> Found | None:
        """The bundle that is known, or else the entry; one of more than `at_most` bytes without its data.

        Args:
            key: whose.
            known: what was said about it before; empty where nothing is known.
            at_most: bytes that the caller has room for.
        """
        name, large = str(known.get("bundle", "")), int(known.get("bytes", 0)) > at_most
        if name and not large and (found := self.load(key, name)) is not None:
            return found
        header = (self.header(key, name) if name else None) or self.header(key)
        if header is not None and int(header["bytes"]) > at_most:
            return Found(header, b"")
        return self.load(key)

    def delete(self, key: str) -> None:
        """Forget an entry. What is saved at the same time may stay."""
        folder = f"{self._root}/{key}"
        try:
            self._fs.delete_dir(folder)
        except OSError:
            if self._files(key):
                raise

    def entries(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """All (key, header) pairs."""
        by_key: dict[str, list[fs.FileInfo]] = {}
        for info in self._fs.get_file_info(fs.FileSelector(self._root, recursive=True)):
            key, _, name = info.path.removeprefix(f"{self._root}/").partition("/")
            if _rank(name) is not None:
                by_key.setdefault(key, []).append(info)
        for key, files in by_key.items():
            newest = _newest(files)
            if newest is not None and (found := self._header(newest)) is not None:
                yield key, found

    def _header(self, info: fs.FileInfo) -> dict[str, Any] | None:
        try:
            with self._fs.open_input_stream(info.path) as stream:
                beginning = stream.read(bundle.HEADER_WITHIN)
        except OSError:
            return None
        return _described(info.path, beginning, info.size or 0)

    def _files(self, key: str) -> list[fs.FileInfo]:
        """What a listing shows of a key; a listing may lag behind."""
        selector = fs.FileSelector(f"{self._root}/{key}", allow_not_found=True)
        return list(self._fs.get_file_info(selector))

    def _tidy(self, key: str, mine: str) -> None:
        """Delete what was succeeded longer than GRACE_S ago, by the storage's own clock: nobody reads it any more."""
        now = self._fs.get_file_info([f"{self._root}/{key}/{mine}"])[0].mtime_ns
        if now is None:
            return
        before = now - int(GRACE_S * 1e9)
        files = self._files(key)
        succeeded_by = max((r for f in files if (r := _rank(f.base_name)) and _older(f, before)), default=None)
        for info in files:
            rank = _rank(info.base_name)
            left_over = rank is None and info.base_name.endswith(_STAGING) and _older(info, before)
            succeeded = rank is not None and succeeded_by is not None and rank < succeeded_by
            if (succeeded or left_over) and info.base_name != mine:
                self._fs.delete_file(info.path)

    def _write(self, target: str, data: Any) -> None:
        self._fs.create_dir(target.rpartition("/")[0], recursive=True)
        if not self._stages:
            with self._fs.open_output_stream(target) as stream:
                stream.write(data)
            return
        with self._fs.open_output_stream(target + _STAGING) as stream:
            stream.write(data)
        self._fs.move(target + _STAGING, target)


def _no_bucket(uri: str) -> str:
    """The bucket of a URI, if its storage answers and has no such bucket."""
    with suppress(OSError, ValueError):
        files, root = open_files(uri)
        bucket = root.partition("/")[0]
        if bucket and not isinstance(files, fs.LocalFileSystem):
            return bucket if files.get_file_info(bucket).type is fs.FileType.NotFound else ""
    return ""


def open_files(uri: str) -> tuple[fs.FileSystem, str]:
    """The file system of a URI or a local folder, and the path in it."""
    found = fs.FileSystem.from_uri(uri) if "://" in uri else (fs.LocalFileSystem(), uri)
    return found[0], str(found[1])


def _rank(name: str) -> tuple[int, str] | None:
    """The order of names: by generation, and of one generation by the random part. None: not a bundle of ours."""
    generation, dash, rest = name.partition("-")
    if not dash or not rest.endswith(_ENDING) or "/" in rest or not (generation.isascii() and generation.isdigit()):
        return None
    return int(generation), rest


def _newest(files: Iterable[fs.FileInfo]) -> fs.FileInfo | None:
    ranked = [(rank, info) for info in files if (rank := _rank(info.base_name)) is not None]
    return max(ranked, key=lambda found: found[0])[1] if ranked else None


def _path(info: fs.FileInfo | None) -> str | None:
    return None if info is None else str(info.path)


def _older(info: fs.FileInfo, ns: int) -> bool:
    return info.mtime_ns is not None and info.mtime_ns < ns


def _described(path: str, beginning: bytes, size: int) -> dict[str, Any]:
    """A bundle's own words, and what its name and size say; a damaged one has only these."""
    name = path.rpartition("/")[2]
    rank = _rank(name)
    own = bundle.unverified_header(memoryview(beginning))
    return {**own, "bytes": size, "bundle": name, "generation": rank[0] if rank else 0}
