"""Simulated storage: what the store uses of pyarrow.fs, with a pause before and after each step."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pyarrow import fs

from tests.simulation.world import Broken, World


@dataclass
class Object:
    """A file: `shown` is when listings begin to have it, `gone` when it was deleted, `hidden` when they stop to."""

    data: bytes
    mtime: float
    shown: float
    gone: float = float("inf")
    hidden: float = float("inf")


class Disk:
    """What all processes share.

    Args:
        world: where.
        slow: mean seconds of a step.
        lag: how long listings may lag behind.
    """

    def __init__(self, world: World, slow: float, lag: float) -> None:
        self.world, self.slow, self.lag = world, slow, lag
        self.objects: dict[str, Object] = {}
        self.full_until = -1.0
        self.evicted: set[str] = set()  # names
        self.forget: Callable[[str], None] = lambda _: None  # told of each eviction
        self.refused: Callable[[str], None] = lambda _: None  # told of each write that finds no room
        self.reads: dict[tuple[object, str], int] = {}  # open reads of whole bundles, by process and path
        self.loads: list[str] = []  # who read a whole bundle

    def step(self) -> None:
        self.world.sleep(self.world.random.expovariate(1 / self.slow))

    def put(self, path: str, data: bytes) -> None:
        now = self.world.now
        shown = now + self.world.random.uniform(0, self.lag)
        self.objects[path] = Object(data, now, shown)

    def remove(self, path: str) -> None:
        if (found := self.objects.get(path)) is None or found.gone <= self.world.now:
            raise FileNotFoundError(path)
        found.gone = self.world.now
        found.hidden = self.world.now + self.world.random.uniform(0, self.lag)

    def there(self, path: str) -> Object | None:
        found = self.objects.get(path)
        return found if found is not None and found.gone > self.world.now else None

    def check_room(self, path: str) -> None:
        if self.world.now < self.full_until:
            self.refused(path)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class _Files:
    """An object store: an object appears whole, when its stream is closed."""

    disk: Disk

    def create_dir(self, path: str, recursive: bool = True) -> None:
        self.disk.step()

    def get_file_info(self, what: Any) -> list[fs.FileInfo]:
        disk, now = self.disk, self.disk.world.now
        disk.step()
        if not isinstance(what, fs.FileSelector):
            pairs = [(path, disk.there(path)) for path in what]
            found = [_info(path, o) if o else fs.FileInfo(path, fs.FileType.NotFound) for path, o in pairs]
        else:
            now = disk.world.now
            below = [(p, o) for p, o in disk.objects.items() if p.startswith(f"{what.base_dir}/")]
            found = [_info(p, o) for p, o in below if o.shown <= now < o.hidden]
        disk.step()
        return found

    def open_input_stream(self, path: str) -> Any:
        self.disk.step()
        found = self.disk.there(path)
        if found is None:
            raise FileNotFoundError(path)
        return _Reader(self.disk, path, found.data)

    def open_output_stream(self, path: str) -> Any:
        self.disk.step()
        return _Writer(self.disk, path, partial=isinstance(self, LocalFiles))

    def delete_file(self, path: str) -> None:
        self.disk.step()
        self.disk.remove(path)
        self.disk.step()

    def delete_dir(self, path: str) -> None:
        self.disk.step()
        now = self.disk.world.now
        listed = [p for p, o in self.disk.objects.items() if p.startswith(f"{path}/") and o.shown <= now < o.hidden]
        for name in listed:
            if self.disk.there(name):
                self.disk.remove(name)
                self.disk.evicted.add(name.rpartition("/")[2])
                self.disk.forget(path.rpartition("/")[2])
            self.disk.step()


class Bucket(_Files):
    def __init__(self, disk: Disk) -> None:
        self.disk = disk


class LocalFiles(_Files, fs.LocalFileSystem):
    """A folder: a file is there from its first byte on, and may be moved."""

    def __init__(self, disk: Disk) -> None:
        self.disk = disk

    def move(self, source: str, target: str) -> None:
        self.disk.step()
        found = self.disk.there(source)
        if found is None:
            raise FileNotFoundError(source)
        self.disk.remove(source)
        self.disk.put(target, found.data)
        self.disk.step()


class _Reader:
    def __init__(self, disk: Disk, path: str, data: bytes) -> None:
        self._disk, self._data, self._key = disk, io.BytesIO(data), (disk.world.current, path)

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def read(self, size: int = -1) -> bytes:
        if size >= 0:
            self._disk.step()
            return self._data.read(size)
        self._disk.loads.append(getattr(self._key[0], "name", ""))
        reads = self._disk.reads
        reads[self._key] = reads.get(self._key, 0) + 1
        if reads[self._key] > 1:
            raise Broken(f"one process loads {self._key[1]} twice at once")
        self._disk.step()
        reads[self._key] -= 1
        return self._data.read()


class _Writer:
    def __init__(self, disk: Disk, path: str, partial: bool) -> None:
        self._disk, self._path, self._partial, self._data = disk, path, partial, b""

    def __enter__(self) -> _Writer:
        if self._partial:
            self._disk.put(self._path, b"")
        return self

    def write(self, data: Any) -> None:
        data = bytes(data)
        self._data = data[: len(data) // 2]
        if self._partial:
            self._disk.put(self._path, self._data)
        self._disk.step()
        self._disk.check_room(self._path)
        self._data = data

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self._disk.step()
            self._disk.put(self._path, self._data)
            self._disk.step()


def _info(path: str, found: Object) -> fs.FileInfo:
    return fs.FileInfo(path, fs.FileType.File, size=len(found.data), mtime_ns=int(found.mtime * 1e9))
