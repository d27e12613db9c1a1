"""The compile key: everything that decides compiled code, as named factors, and their digest."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from functools import cache
from pathlib import Path

# vLLM's own factors, in its order; factors whose names begin so say what went into each
DIGESTS = {"vllm env": ("vllm env ",), "vllm config": ("vllm config ", "model "), "inductor": ("inductor ",)}


def digest(factors: Mapping[str, str]) -> str:
    """The key: a hex SHA-256 over the sorted factors."""
    return hashlib.sha256(json.dumps(dict(factors), sort_keys=True).encode()).hexdigest()


def differing(ours: Mapping[str, str], theirs: Mapping[str, str]) -> list[str]:
    """The names of the factors that two keys disagree on: why an entry was not a hit.

    A digest is named only where nothing of what it stands for is: it may be of an entry that has no names yet.
    """
    found = {name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name)}
    for group, beginnings in DIGESTS.items():
        parts = {name for name in found if name.startswith(beginnings)}
        named = all(any(name.startswith(beginnings) for name in factors) for factors in (ours, theirs))
        found -= {group} if parts and named else parts
    return sorted(found)


@cache
def cpu_factors(*, model: bool = True, info: Path = Path("/proc/cpuinfo")) -> dict[str, str]:
    """The CPU's name and features: Inductor compiles for exactly these (`-march=native`).

    Args:
        model: with the CPU's name, for an engine on CPUs. On GPUs its features alone count: an engine's folder may hold
            a C++ kernel for what the model computes on the CPU, and one that was made for a feature that this CPU has
            not got would kill the process.
        info: what Linux says about the CPU.
    """
    lines = info.read_text().splitlines() if info.exists() else []
    found = {line.partition(":")[0].strip(): line.partition(":")[2].strip() for line in lines}
    features = found.get("flags") or found.get("Features") or platform.processor()
    name = [found["model name"]] if model and "model name" in found else []
    return {"cpu": " ".join([platform.machine(), *name]), "cpu features": " ".join(sorted(features.split()))}


@cache
def source_digest(folder: Path) -> str:
    """A digest of a package's Python sources: code that writes or reads graphs is part of the key.

    Raises:
        FileNotFoundError: it has none; a digest of nothing would leave that code out of the key.
    """
    return digest(source_digests(folder))[:16]


@cache
def source_digests(folder: Path) -> dict[str, str]:
    """The same for each source, by its name. Raises as `source_digest`."""
    files = sorted(folder.rglob("*.py"))
    if not files:
        raise FileNotFoundError(f"There are no Python sources in {folder}.")
    return {f.relative_to(folder).as_posix(): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}
