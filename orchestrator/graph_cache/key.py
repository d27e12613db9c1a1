"""The compile key: everything that decides compiled code, as named factors, and their digest."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from functools import cache
from pathlib import Path


def digest(factors: Mapping[str, str]) -> str:
    """The key: a hex SHA-256 over the sorted factors."""
    return hashlib.sha256(json.dumps(dict(factors), sort_keys=True).encode()).hexdigest()


def differing(ours: Mapping[str, str], theirs: Mapping[str, str]) -> list[str]:
    """The names of the factors that two keys disagree on: why an entry was not a hit."""
    return sorted(name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name))


@cache
def cpu_instruction_set(*, model: bool = True, info: Path = Path("/proc/cpuinfo")) -> str:
    """The CPU's features, hashed: Inductor compiles for exactly these (`-march=native`).

    Args:
        model: with the CPU's name, for an engine on CPUs. On GPUs its features alone count: an engine's folder may hold
            a C++ kernel for what the model computes on the CPU, and one that was made for a feature that this CPU has
            not got would kill the process.
        info: what Linux says about the CPU.
    """
    names = ("flags", "Features", *(["model name"] if model else []))
    lines = info.read_text().splitlines() if info.exists() else [platform.processor()]
    wanted = {line.partition(":")[2].strip() for line in lines if line.startswith(names)}
    return f"{platform.machine()}-{hashlib.sha256(repr(sorted(wanted)).encode()).hexdigest()[:12]}"


@cache
def source_digest(folder: Path) -> str:
    """A digest of a package's Python sources: code that writes or reads graphs is part of the key.

    Raises:
        FileNotFoundError: it has none; a digest of nothing would leave that code out of the key.
    """
    files = sorted(folder.rglob("*.py"))
    if not files:
        raise FileNotFoundError(f"There are no Python sources in {folder}.")
    found = hashlib.sha256()
    for file in files:
        found.update(file.relative_to(folder).as_posix().encode() + b"\0" + file.read_bytes())
    return found.hexdigest()[:16]
