"""The payload of a bundle: files as a tar archive in memory, each byte of which is written once.

Memory that is touched for the first time is dear, a gigabyte of it takes seconds: so the size is known before anything
is read, no buffer grows, and nothing is copied.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

_TEMPORARY = "tmp.pid_"  # Triton's; the others end in .tmp
_END = bytes(2 * tarfile.BLOCKSIZE)


def archive(root: Path, folders: Sequence[Path], free: int) -> tuple[np.ndarray[Any, np.dtype[np.uint8]], int]:
    """Files of folders below `root`, behind `free` bytes for others.

    Args:
        root: paths in the archive are relative to it.
        folders: what to pack; only regular files that are whole are taken.
        free: how many bytes to leave at the beginning; their content is undefined.

    Returns:
        The bytes, shape (free + archive,), and how many files are in it.
    """
    members = [member for folder in folders for member in _members(root, folder)]
    whole = np.empty(free + sum(len(head) + _padded(size) for _, head, size in members) + len(_END), dtype=np.uint8)
    view, at, count = whole.data, free, 0
    for file, head, size in members:
        content = at + len(head)
        if not _read(file, view[content : content + size]):  # the engine goes on, and tidies up
            continue
        view[at:content] = head
        at = content + _padded(size)
        view[content + size : at] = bytes(at - content - size)
        count += 1
    view[at : at + len(_END)] = _END
    return whole[: at + len(_END)], count


def _members(root: Path, folder: Path) -> Iterator[tuple[Path, bytes, int]]:
    """The files below a folder, with the archive's header for each, and its size."""
    for file in _finished(folder):
        with suppress(FileNotFoundError):
            info, known = tarfile.TarInfo(file.relative_to(root).as_posix()), file.stat()
            info.size, info.mode, info.mtime = known.st_size, known.st_mode & 0o777, int(known.st_mtime)
            yield file, info.tobuf(), info.size


def _finished(folder: Path) -> list[Path]:
    """The regular files below a folder that are whole: Triton, torch and vLLM write under another name first."""
    found = []
    for parent, folders, names in os.walk(folder):  # which does not mind what vanishes on the way
        folders[:] = [name for name in folders if not name.startswith(_TEMPORARY)]
        kept = [Path(parent) / n for n in names if not n.startswith(_TEMPORARY) and not n.endswith((".tmp", ".lock"))]
        found += [file for file in kept if file.is_file() and not file.is_symlink()]
    return sorted(found)


def _read(file: Path, into: memoryview) -> bool:
    """Fill `into` from a file; False where it is gone, or shorter."""
    with suppress(FileNotFoundError), file.open("rb", buffering=0) as stream:
        while into:
            if not (count := stream.readinto(into)):
                return False
            into = into[count:]
        return True
    return False


def _padded(size: int) -> int:
    return size + -size % tarfile.BLOCKSIZE
