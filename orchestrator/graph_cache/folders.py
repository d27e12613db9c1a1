"""Folders that are closed to others."""

from __future__ import annotations

from pathlib import Path

_TRIES = 10


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
