"""Folders that are closed to others."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

_TRIES = 10
_GONE = ".gone-"


def make_private(folder: Path) -> None:
    """Make a folder and what is missing above it, each with mode 0700; `parents=True` would leave those open.

    Raises:
        OSError: it cannot be made.
    """
    for left in reversed(range(_TRIES)):
        if folder.is_dir():
            return
        try:
            for part in reversed([folder, *folder.parents]):
                if not part.is_dir():
                    part.mkdir(mode=0o700, exist_ok=True)
        except FileNotFoundError:  # an empty one above was just removed, by a replica that ended
            if not left:
                raise


def only_ours(folder: Path) -> bool:
    """May nobody but this user write to a folder?

    Raises:
        OSError: it is not there.
    """
    found = folder.stat()
    return found.st_uid == os.getuid() and not found.st_mode & 0o022


def remove_whole(copy: Path) -> None:
    """Remove a folder, away under another name first: nobody finds half a copy.

    Raises:
        OSError: it is not there, or cannot be moved.
    """
    doomed = copy.with_name(f"{_GONE}{copy.name[:16]}-{os.getpid()}-{time.monotonic_ns()}")
    copy.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def remove_left_overs(folder: Path) -> None:
    """Remove what a killed process was removing by `remove_whole`."""
    for doomed in folder.glob(f"{_GONE}*"):
        shutil.rmtree(doomed, ignore_errors=True)
