"""vLLM's CPU platform wants its allocator and torch's OpenMP loaded before anything else, by LD_PRELOAD."""

from __future__ import annotations

import importlib.util
import os
import sys
from importlib import metadata
from pathlib import Path

_DONE = "ORCHESTRATOR_LIBRARIES_LOADED"


def load_first() -> None:
    """On a machine whose vLLM brings those libraries, start this process again with them loaded."""
    if os.environ.pop(_DONE, ""):
        return
    before = os.environ.get("LD_PRELOAD", "")
    wanted = [lib for lib in cpu_libraries() if Path(lib).name.partition(".so")[0] not in before]
    if wanted:
        os.environ.update({"LD_PRELOAD": ":".join([*wanted, *filter(None, [before])]), _DONE: "1"})
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606


def cpu_libraries() -> list[str]:
    """tcmalloc where vLLM's wheel brings it, and torch's own libgomp; nothing where torch is built for GPUs."""
    found: list[str] = []
    if not metadata.version("torch").endswith("+cpu"):
        return found
    for package, patterns in (
        ("vllm", ("libs/libtcmalloc_minimal*.so*", "libs/libtcmalloc.so*")),
        ("torch", ("../torch.libs/libgomp*.so*", "lib/libgomp*.so*")),
    ):
        spec = importlib.util.find_spec(package)
        folders = [Path(p) for p in (spec.submodule_search_locations or ())] if spec else []
        files = [f for folder in folders for pattern in patterns for f in sorted(folder.glob(pattern))]
        found += [str(files[0].resolve())] if files else []
    return found
