"""One installed copy of each bundle per node, shared by the node's replicas through hard links.

`<folder>/<name>/` appears by one rename, from a bundle whose signature was checked by the process that installed it;
the name is the payload's digest under the cluster's signing key, so a copy by another key is never found. Only folders
of our own, closed to others, are believed. A file lock, which the kernel frees when its holder dies, lets one replica
fetch and install while the node's others wait. What was used least recently goes first when the copies outgrow their
bound; replicas keep their links.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from orchestrator.graph_cache import bundle
from orchestrator.graph_cache.folders import make_private, remove_left_overs, remove_whole

_LOCK_S = 120.0


def name_of(digest: str, key: bytes) -> str:
    """A copy's name: the payload's SHA-256 (hex) under the signing key."""
    return hmac.new(key, digest.encode(), hashlib.sha256).hexdigest()


class NodeCopies:
    """The installed bundles of this node.

    Args:
        folder: where they are; made with mode 0700. `~` and `$NAME` are read on the node.
        max_bytes: how much they may hold together.
    """

    def __init__(self, folder: str, max_bytes: int) -> None:
        self.folder = Path(os.path.expandvars(folder)).expanduser()
        self.max_bytes = max_bytes

    def link(self, name: str, root: Path | None, fetch: Callable[[], memoryview], limits: bundle.Limits) -> bool:
        """Put a bundle's files below `root`, from this node's copy if there is one.

        Args:
            name: see `name_of`.
            root: the replica's cache root; None for those to come: the node gets its copy, and that is all.
            fetch: returns the verified payload of that name; called only if the node has no copy.
            limits: ceilings on what is unpacked.

        Returns:
            Whether the payload had to be fetched.

        Raises:
            ArtifactRefused, OSError: from `fetch` and from unpacking.
        """
        copy = self.folder / name
        try:
            self._prepare()
            with FileLock(self.folder / f"{name}.lock", timeout=_LOCK_S):
                fetched = not _is_ours(copy)
                if fetched:
                    shutil.rmtree(copy, ignore_errors=True)
                    bundle.install(fetch(), copy, limits)
                if root is not None:
                    _link_tree(copy, root)
            os.utime(copy)
            if fetched:
                self._prune(keep=copy)
            return fetched
        except (OSError, Timeout):  # a node folder that is not ours, full, read-only or stuck must not stop a replica
            if root is None:
                raise
            bundle.install(fetch(), root, limits)
            return True

    def _prepare(self) -> None:
        make_private(self.folder)
        if not _is_ours(self.folder):
            raise PermissionError(f"{self.folder} is open to others")

    def _prune(self, keep: Path) -> None:
        self._remove_left_overs()
        copies = sorted((p for p in self.folder.iterdir() if p.is_dir()), key=lambda p: p.stat().st_mtime, reverse=True)
        total = 0
        for copy in [keep, *(c for c in copies if c != keep)]:
            with suppress(OSError):
                total += sum(f.stat().st_size for f in copy.rglob("*") if f.is_file())
                if total > self.max_bytes and copy != keep:
                    remove_whole(copy)

    def _remove_left_overs(self) -> None:
        """What killed processes were installing, which nobody does who has not the lock, and removing."""
        for staging in self.folder.glob(f"{bundle.STAGING}*"):
            name = staging.name.removeprefix(bundle.STAGING).rpartition("-")[0]
            with suppress(OSError, Timeout), FileLock(self.folder / f"{name}.lock", timeout=0):
                shutil.rmtree(staging, ignore_errors=True)
        remove_left_overs(self.folder)


def _is_ours(folder: Path) -> bool:
    if not folder.is_dir() or folder.is_symlink():
        return False
    found = folder.stat()
    return found.st_uid == os.getuid() and not found.st_mode & 0o077


def _link_tree(copy: Path, root: Path) -> None:
    for source in sorted(copy.rglob("*")):
        target = root / source.relative_to(copy)
        if source.is_dir():
            make_private(target)
            continue
        make_private(target.parent)
        target.unlink(missing_ok=True)
        try:
            os.link(source, target)
        except OSError:  # another file system
            shutil.copy2(source, target)
