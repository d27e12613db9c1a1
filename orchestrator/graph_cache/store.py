"""Durable copies of bundles in a folder or an object store (pyarrow.fs: local, s3://, gs://)."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from typing import Any

from pyarrow import fs

from orchestrator.errors import ConfigError


class Store:
    """`<root>/<key>/<name>.bundle` and a pointer `<root>/<key>/latest.json`, which is written last.

    Args:
        uri: a local folder, or a URI that pyarrow.fs knows.

    Raises:
        ConfigError: the URI's kind is not known, or its file system cannot be reached.
    """

    def __init__(self, uri: str) -> None:
        try:
            found = fs.FileSystem.from_uri(uri) if "://" in uri else (fs.LocalFileSystem(), uri)
            self._fs, self._root = found[0], str(found[1])
            self._fs.create_dir(self._root, recursive=True)
        except (OSError, ValueError) as error:
            raise ConfigError(f"graph_cache.store={uri}: {error}", where="graph_cache.store") from error

    def save(self, key: str, generation: int, data: Any, header: dict[str, Any]) -> None:
        """Write a bundle, then the pointer to it; a reader sees the old one or the new one, never a half."""
        name = f"{generation}-{secrets.token_hex(4)}.bundle"
        self._write(f"{key}/{name}", data)
        pointer = json.dumps({**header, "bundle": name, "generation": generation}).encode()
        self._write(f"{key}/latest.json", pointer)
        for old in self._names(key):
            if old.endswith(".bundle") and old != name:
                self._fs.delete_file(f"{self._root}/{key}/{old}")

    def pointer(self, key: str) -> dict[str, Any] | None:
        """The entry's header as last published, or None."""
        try:
            with self._fs.open_input_stream(f"{self._root}/{key}/latest.json") as stream:
                found = json.loads(stream.read())
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) and "/" not in str(found.get("bundle", "/")) else None

    def load(self, key: str) -> bytes | None:
        """The bundle that the pointer names, or None."""
        pointer = self.pointer(key)
        if pointer is None:
            return None
        try:
            with self._fs.open_input_stream(f"{self._root}/{key}/{pointer['bundle']}") as stream:
                return bytes(stream.read())
        except OSError:
            return None

    def delete(self, key: str) -> None:
        """Forget an entry."""
        if self._fs.get_file_info(f"{self._root}/{key}").type == fs.FileType.Directory:
            self._fs.delete_dir(f"{self._root}/{key}")

    def entries(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """All (key, header) pairs."""
        for info in self._fs.get_file_info(fs.FileSelector(self._root)):
            if info.type == fs.FileType.Directory and (pointer := self.pointer(info.base_name)):
                yield info.base_name, pointer

    def _names(self, key: str) -> list[str]:
        return [info.base_name for info in self._fs.get_file_info(fs.FileSelector(f"{self._root}/{key}"))]

    def _write(self, path: str, data: Any) -> None:
        target = f"{self._root}/{path}"
        self._fs.create_dir(target.rpartition("/")[0], recursive=True)
        if not isinstance(self._fs, fs.LocalFileSystem):  # an object store shows an object when it is complete
            with self._fs.open_output_stream(target) as stream:
                stream.write(data)
            return
        staging = f"{target}.{secrets.token_hex(4)}.tmp"
        with self._fs.open_output_stream(staging) as stream:
            stream.write(data)
        self._fs.move(staging, target)
