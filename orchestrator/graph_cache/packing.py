"""The payload of a bundle: files as a tar archive in memory, each byte of which is written once.

Memory that is touched for the first time is dear: in a virtual machine whose host takes back what is free, a gigabyte
of it takes three seconds of a core. So the size is known before anything is read, no buffer grows, nothing is copied,
and files are read by several threads.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import accumulate, compress
from pathlib import Path
from typing import Any

import numpy as np

_TEMPORARY = "tmp.pid_"  # Triton's; the others end in .tmp
_END = bytes(2 * tarfile.BLOCKSIZE)
THREADS = 4  # that read or write files: new memory is what takes their time


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
    sizes = [len(head) + _padded(size) for _, head, size in members]
    begins = [free, *(free + total for total in accumulate(sizes))]
    whole = np.empty(begins[-1] + len(_END), dtype=np.uint8)
    parts = [whole.data[begin : begin + size] for begin, size in zip(begins, sizes, strict=False)]
    with ThreadPoolExecutor(THREADS) as threads:
        filled = list(threads.map(_fill, members, parts))
    at = free
    for begin, size in compress(zip(begins, sizes, strict=False), filled):
        if at < begin:  # a file before it was gone: the engine goes on, and tidies up
            whole[at : at + size] = whole[begin : begin + size]
        at += size
    whole[at : at + len(_END)] = 0
    return whole[: at + len(_END)], sum(filled)


def _fill(member: tuple[Path, bytes, int], part: memoryview) -> bool:
    """Write a file with its header and padding; False where it is gone, or shorter."""
    file, head, size = member
    end = len(head) + size
    part[: len(head)] = head
    part[end:] = bytes(len(part) - end)
    return _read(file, part[len(head) : end])


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
