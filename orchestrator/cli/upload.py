"""Copies of a job's outputs on shared or object storage."""

from __future__ import annotations

from pathlib import Path

from pyarrow import fs

from orchestrator.errors import ConfigError


def check(uri: str) -> None:
    """Is there such a storage at all?

    Raises:
        ConfigError: no.
    """
    _open(uri)


def upload(folder: Path, uri: str) -> str:
    """Copy a job's output folder, and return where it is now: below `uri`, under its last two names (day and time).

    Raises:
        ConfigError: `uri` names no storage.
        OSError: it cannot be written.
    """
    system, root = _open(uri)
    target = "/".join([root.rstrip("/"), *folder.resolve().parts[-2:]])
    system.create_dir(target, recursive=True)
    fs.copy_files(str(folder), target, source_filesystem=fs.LocalFileSystem(), destination_filesystem=system)
    return f"{uri.rstrip('/')}/{'/'.join(folder.resolve().parts[-2:])}"


def _open(uri: str) -> tuple[fs.FileSystem, str]:
    try:
        found: tuple[fs.FileSystem, str] = fs.FileSystem.from_uri(uri if "://" in uri else Path(uri).resolve().as_uri())
    except (OSError, ValueError) as error:
        raise ConfigError(f"upload={uri}: {' '.join(str(error).split())}", where="upload") from error
    return found
