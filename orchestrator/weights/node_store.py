"""The models that a node keeps on its disk, each piece of which is known by its digest.

`<folder>/<version>/` has a model's files, `<folder>/<version>.pieces` the number and the digest of each piece that is
there. A digest is an HMAC under the cluster's signing key of the model's version, the piece's number and its SHA-256:
who has not got the key cannot make one. So a copy can be half, and goes on where it stopped; and a byte that was
changed on the disk, in a file or in that list, is noticed: a copy is read whole before it is used. Values count, not
headers or dates.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock

from orchestrator.graph_cache.folders import make_private, only_ours, remove_left_overs, remove_whole
from orchestrator.weights.listing import Listing, Piece

_PIECES = ".pieces"
_USED = ".used"
_LOCK = ".lock"
_THREADS = 8


class NodeStore:
    """A node's copies.

    Args:
        folder: where they are; made with mode 0700.
        key: the cluster's signing key.
        max_bytes: how much they may hold together.
    """

    def __init__(self, folder: str, key: bytes, max_bytes: int) -> None:
        self.folder = Path(folder)
        self._key, self._max_bytes = key, max_bytes

    def digest(self, listing: Listing, number: int, sha256: str) -> str:
        """A piece's digest, in hex, from that of its bytes."""
        return self._hmac(f"{listing.version} {number} {sha256}")

    def swarm(self, listing: Listing) -> str:
        """A name for those who share a model: nodes with another signing key are among themselves."""
        return self._hmac(f"{listing.version} swarm")

    @contextmanager
    def locked(self, listing: Listing) -> Iterator[None]:
        """No other process of this node works on a copy meanwhile, and nobody removes it.

        Raises:
            OSError: the folder cannot be made, or can be written by others.
        """
        used = in_use(self.folder, listing)
        try:
            if not only_ours(self.folder):
                raise PermissionError(f"{self.folder} can be written by others")
            with FileLock(self.folder / f"{listing.version}{_LOCK}"):
                yield
        finally:
            os.close(used)

    def held(self, listing: Listing) -> tuple[dict[int, str], list[str]]:
        """The pieces that are there and right, number -> digest, and what was refused, for messages.

        Files are made as long as they have to be, and what does not belong there is removed.
        """
        self._shape(listing)
        noted = self._noted(listing)
        with ThreadPoolExecutor(_THREADS) as threads:
            found = dict(zip(noted, threads.map(lambda number: self._found(listing, number), noted), strict=True))
        wrong = [listing.pieces[number] for number, digest in noted.items() if found[number] != digest]
        return {n: d for n, d in noted.items() if found[n] == d}, [f"{piece}, on this disk" for piece in wrong]

    def write(self, listing: Listing, piece: Piece, offset: int, data: memoryview) -> None:
        """Put a part of a piece into its place; it does not count before the whole piece is noted.

        Raises:
            OSError: the disk is full, or cannot be written.
        """
        handle = os.open(self._file(listing, piece.file), os.O_WRONLY | os.O_NOFOLLOW)
        try:
            at = piece.offset + offset
            while data:
                count = os.pwrite(handle, data, at)
                data, at = data[count:], at + count
        finally:
            os.close(handle)

    def note(self, listing: Listing, piece: Piece, digest: str) -> None:
        """A piece is there."""
        with open(self._list(listing), "a", opener=_private) as notes:
            notes.write(_line(piece.number, digest))

    def read(self, listing: Listing, piece: Piece, offset: int, length: int) -> bytes:
        """A part of a piece as it is on the disk; nothing is checked.

        Raises:
            OSError: it is not there, or cut off.
        """
        handle = os.open(self._file(listing, piece.file), os.O_RDONLY | os.O_NOFOLLOW)
        try:
            data = os.pread(handle, length, piece.offset + offset)
        finally:
            os.close(handle)
        if len(data) != length:
            raise OSError(f"{piece.file} is cut off")
        return data

    def finish(self, listing: Listing, digests: Mapping[int, str]) -> None:
        """A copy is whole: its list has each piece once, and it was used just now."""
        notes = self._list(listing)
        staging = notes.with_name(f"{notes.name}.tmp")
        with open(staging, "w", opener=_private) as stream:
            stream.writelines(_line(number, digest) for number, digest in sorted(digests.items()))
        staging.replace(notes)

    def make_room(self, listing: Listing) -> None:
        """Remove copies until this one fits: the least recently used first, and none in use."""
        remove_left_overs(self.folder)
        lists = sorted(self.folder.glob(f"*{_PIECES}"), key=lambda file: file.stat().st_mtime)
        others = {name: _size(self.folder / name) for f in lists if (name := f.stem) != listing.version}
        room = self._max_bytes - listing.bytes - sum(others.values())
        for name, size in others.items():
            if room >= 0:
                break
            room += size if self._remove(name) else 0

    def _remove(self, version: str) -> bool:
        """Away under another name first; False where it is in use."""
        handle = os.open(self.folder / f"{version}{_USED}", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            (self.folder / f"{version}{_PIECES}").unlink(missing_ok=True)
            remove_whole(self.folder / version)
        except OSError:
            return False
        finally:
            os.close(handle)
        return True

    def _shape(self, listing: Listing) -> None:
        root = self.folder / listing.version
        make_private(root)
        names = {file.name for file in listing.files}
        for found in sorted(root.rglob("*"), reverse=True):
            name = found.relative_to(root).as_posix()
            if found.is_symlink() or (found.is_file() and name not in names):
                found.unlink()
            elif found.is_dir() and name in names:
                shutil.rmtree(found)
        for file in listing.files:
            target = root / file.name
            make_private(target.parent)
            with open(target, "ab", opener=_private):
                pass
            if target.stat().st_size != file.size:
                os.truncate(target, file.size)

    def _noted(self, listing: Listing) -> dict[int, str]:
        """What the list says; the last word on a piece counts."""
        found: dict[int, str] = {}
        try:
            lines = self._list(listing).read_text(errors="replace").splitlines()
        except OSError:
            return {}
        for line in lines:
            with suppress(ValueError, TypeError):  # a line that was cut off, or damaged
                number, digest = json.loads(line)
                if isinstance(number, int) and 0 <= number < len(listing.pieces):
                    found[number] = str(digest)
        return found

    def _found(self, listing: Listing, number: int) -> str:
        piece, found = listing.pieces[number], hashlib.sha256()
        try:
            for offset, length in listing.parts(piece):
                found.update(self.read(listing, piece, offset, length))
        except OSError:
            return ""
        return self.digest(listing, number, found.hexdigest())

    def _hmac(self, text: str) -> str:
        return hmac.new(self._key, text.encode(), hashlib.sha256).hexdigest()

    def _file(self, listing: Listing, name: str) -> Path:
        return self.folder / listing.version / name

    def _list(self, listing: Listing) -> Path:
        return self.folder / f"{listing.version}{_PIECES}"


def in_use(folder: str | Path, listing: Listing) -> int:
    """Say that a process reads a copy, or will: nobody removes it until the process ends, or closes what is returned.

    Returns:
        A file handle.

    Raises:
        OSError: the folder cannot be made, or be written.
    """
    make_private(Path(folder))
    handle = os.open(Path(folder) / f"{listing.version}{_USED}", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(handle, fcntl.LOCK_SH)
    return handle


def _line(number: int, digest: str) -> str:
    return json.dumps([number, digest]) + "\n"


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
