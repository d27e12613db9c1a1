"""What a start on a GPU makes besides graphs, and keeps on its node: kernels, tuning results, plans.

On a node that never ran the model they are made anew: vLLM's own Triton kernels alone took 15 to 20 s on an H200. So
they travel in the bundle of the graphs, under its signature. `collect` puts what a start used below its cache root,
before that is packed; `spread` puts what came with a bundle to where a node's engines look for it. What is there
already stays as it is. Folders that others may write to are neither read nor written.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.errors import one_line
from orchestrator.graph_cache.bundle import Limits
from orchestrator.graph_cache.folders import only_ours

PART = "kernels"  # below a cache root, and in a bundle
USED = "kernels_used"  # below a cache root: what `begin` makes, and an empty file for each of Triton's keys
NODE_ROOT = "ORCHESTRATOR_NODE_CACHE_ROOT"  # vLLM's own cache folder, where an engine has one of its own
_BEGAN = ".began"
_GROUP = "__grp__"  # Triton's list of a kernel's files, with their absolute paths
_UNFINISHED = "tmp.pid_"  # a folder of Triton's
_MOST = Limits(256 << 20, 8000)  # of kernels in one bundle
_FAULTS = (OSError, RuntimeError)  # the latter: a user without a home
_PART_OF = 4  # of a bundle's own ceilings, if that is less


@dataclass(frozen=True)
class KernelCache:
    """One cache, of folders that are made once and not changed.

    Attributes:
        name: as reports say it.
        folder: its place below PART.
        where: where a node keeps it; it is given a replica's cache root, or None. None: not without a replica.
        recorded: we know which folders a start used. Else the bundle gets all, the newest first.
    """

    name: str
    folder: str
    where: Callable[[Path | None], Path | None]
    recorded: bool = False


def vllms_own_cache() -> Path:
    """vLLM's own cache folder on this node, as vLLM finds it; it need not be imported."""
    default = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "vllm")
    return Path(os.environ.get(NODE_ROOT) or os.environ.get("VLLM_CACHE_ROOT") or default).expanduser()


def triton_folder() -> Path:
    """Triton's cache on this node, as Triton finds it."""
    home = os.environ.get("TRITON_HOME") or os.path.expanduser("~")
    return Path(os.environ.get("TRITON_CACHE_DIR") or f"{home}/.triton/cache")


def deep_gemm_folder() -> Path:
    """DeepGEMM's cache on this node, for engines of ours."""
    return Path(os.environ.get("DG_JIT_CACHE_DIR") or vllms_own_cache() / "deep_gemm")


CACHES = (
    KernelCache("Triton kernels", "triton", lambda _: triton_folder(), recorded=True),
    KernelCache("DeepGEMM kernels", "deep_gemm", lambda _: deep_gemm_folder()),
    KernelCache(
        "FlashInfer's tuning",
        "flashinfer_autotune_cache",
        lambda _: vllms_own_cache() / "flashinfer_autotune_cache",
    ),
    KernelCache("vLLM's model infos", "modelinfos", lambda _: vllms_own_cache() / "modelinfos"),
    # VLLM_ENABLE_STARTUP_PLAN=1: how large the KV cache was; with it the next start profiles nothing, and has as much
    KernelCache("vLLM's start-up plan", "startup_plan", lambda root: root and root / "startup_plan"),
)
# Not FlashInfer's own kernels: ninja builds them again where paths or times differ. Nor its cubins: it fetches them.


def begin(root: Path) -> None:
    """A start begins, with what came for it in its place: what is younger than this was made by it."""
    with suppress(OSError):
        (root / USED).mkdir(parents=True, exist_ok=True)
        (root / USED / _BEGAN).touch()


def collect(root: Path, limits: Limits) -> list[Path]:
    """Put what a start used below its cache root, as far as it fits into a bundle.

    Args:
        root: the replica's cache root.
        limits: the bundle's.

    Returns:
        What to pack: one folder, or none where `begin` was not called.
    """
    if not (root / USED / _BEGAN).exists():
        return []
    most_bytes = min(_MOST.max_bytes, limits.max_bytes // _PART_OF)
    most_files = min(_MOST.max_files, limits.max_files // _PART_OF)
    for cache in CACHES:
        with suppress(*_FAULTS):  # graphs are packed without it
            source = cache.where(root)
            for folder in _folders(cache, root, source):
                files = _files(folder)
                size = sum(file.stat().st_size for file in files)
                if size > most_bytes or len(files) > most_files:
                    continue
                most_bytes, most_files = most_bytes - size, most_files - len(files)
                for file in files:
                    _place(file, root / PART / cache.folder / file.relative_to(source))  # type: ignore[arg-type]
    return [root / PART] if (root / PART).is_dir() else []


def spread(parts: Path, root: Path | None) -> dict[str, dict[str, Any]]:
    """Put what came with a bundle to where this node's engines look for it.

    Args:
        parts: the PART of a bundle that was verified.
        root: the cache root of the replica that it came for; None for those to come.

    Returns:
        By cache's name: `brought`, how many folders came; `why` none did, where some could have.
    """
    found: dict[str, dict[str, Any]] = {}
    for cache in CACHES:
        source = parts / cache.folder
        try:
            target = cache.where(root)
            if target is None or not target.is_absolute() or not source.is_dir():  # a user without a home
                continue
            target.mkdir(parents=True, exist_ok=True)
            if not only_ours(target):
                found[cache.name] = {"brought": 0, "why": f"others may write to {target}"}
                continue
            came = list(_leaves(source))
            for folder in came:
                _spread_one(folder, target / folder.relative_to(source))
            found[cache.name] = {"brought": len(came)}
        except _FAULTS as error:  # a start makes what it does not find
            found[cache.name] = {"brought": 0, "why": one_line(error)}
    return found


def told(brought: Mapping[str, Mapping[str, Any]], root: Path) -> dict[str, dict[str, Any]]:
    """What `spread` said of a start, and how many folders of each cache the start has `made` itself."""
    found = {name: dict(counts) for name, counts in brought.items()}
    for cache in CACHES:
        with suppress(*_FAULTS):
            began = (root / USED / _BEGAN).stat().st_mtime_ns
            folders = _folders(cache, root, cache.where(root))
            made = sum(any(file.stat().st_mtime_ns > began for file in _files(folder)) for folder in folders)
            if made or cache.name in found:
                found.setdefault(cache.name, {"brought": 0})["made"] = made
    return found


def _folders(cache: KernelCache, root: Path, source: Path | None) -> list[Path]:
    """A cache's folders that a start used, or might have; the newest first."""
    if source is None or not source.is_dir() or not only_ours(source):
        return []
    if cache.recorded:
        names = [file.name for file in (root / USED).iterdir() if file.name != _BEGAN]
        found = [folder for name in names if (folder := source / name).is_dir() and not folder.is_symlink()]
    else:
        found = list(_leaves(source))
    return sorted(filter(only_ours, found), key=lambda folder: folder.stat().st_mtime_ns, reverse=True)


def _leaves(source: Path) -> Iterator[Path]:
    """The folders that hold files themselves."""
    for parent, folders, files in os.walk(source):
        folders[:] = sorted(name for name in folders if not name.startswith(_UNFINISHED))
        if files:
            yield Path(parent)


def _files(folder: Path) -> list[Path]:
    """Its whole files; Triton's groups last, since they name the others."""
    with suppress(FileNotFoundError):
        found = [
            f for f in folder.iterdir() if f.is_file() and not f.is_symlink() and f.suffix not in (".tmp", ".lock")
        ]
        return sorted((f for f in found if f.name != "lock"), key=lambda f: (f.name.startswith(_GROUP), f.name))
    return []


def _spread_one(source: Path, target: Path) -> None:
    """Put a folder's files that are not there yet into another."""
    for file in _files(source):
        if (to := target / file.name).exists():
            continue
        if file.name.startswith(_GROUP):
            _write(to, _group(file, target))
        else:
            _place(file, to)


def _group(file: Path, folder: Path) -> bytes:
    """One of Triton's groups, of files that lie in `folder` now."""
    with suppress(ValueError, AttributeError, TypeError):
        known = json.loads(file.read_bytes())
        return json.dumps({"child_paths": {name: str(folder / name) for name in known["child_paths"]}}).encode()
    return file.read_bytes()


def _place(file: Path, target: Path) -> None:
    """A hard link, or a copy where that cannot be; what is there stays."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(file, target)
    except FileExistsError:
        return
    except OSError:  # another file system
        _write(target, file.read_bytes())


def _write(target: Path, content: bytes) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    staging.write_bytes(content)
    staging.replace(target)
