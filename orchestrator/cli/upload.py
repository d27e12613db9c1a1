"""Copies of a job's outputs on shared or object storage."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from pyarrow import fs

from orchestrator import paths
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


def earlier(uri: str, folder: Path, mark: str, names: Sequence[str], to: Path) -> Iterator[Path]:
    """Copies of files that earlier jobs uploaded to `uri` from folders in which `mark` was as it is in ours.

    Args:
        uri: as for `upload`.
        folder: of this job.
        mark: a file's name.
        names: of the files.
        to: where the copies go; each is written over by the next.
    """
    system, root = _open(uri)
    ours, local = (folder / mark).read_bytes(), fs.LocalFileSystem()
    days = _within(system, root, fs.FileType.Directory)
    for job in (job for day in days for job in _within(system, day.path, fs.FileType.Directory)):
        files = {file.base_name: file.path for file in _within(system, job.path, fs.FileType.File)}
        if mark in files and system.open_input_stream(files[mark]).read() == ours:
            for name in set(names) & set(files):
                fs.copy_files(files[name], str(to / name), source_filesystem=system, destination_filesystem=local)
                yield to / name


def _within(system: fs.FileSystem, path: str, kind: fs.FileType) -> list[fs.FileInfo]:
    found = system.get_file_info(fs.FileSelector(path, allow_not_found=True))
    return [info for info in found if info.type is kind]


def _open(uri: str) -> tuple[fs.FileSystem, str]:
    uri = paths.expanded(uri)
    try:
        found: tuple[fs.FileSystem, str] = fs.FileSystem.from_uri(uri if "://" in uri else Path(uri).resolve().as_uri())
    except (OSError, ValueError) as error:
        raise ConfigError(f"upload={uri}: {' '.join(str(error).split())}", where="upload") from error
    return found
