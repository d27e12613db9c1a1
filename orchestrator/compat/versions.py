"""The vLLM versions that the plugin is made for. What each of them has, the table says (`since`)."""

from __future__ import annotations

import re
import sys
from importlib.machinery import PathFinder
from pathlib import Path

OLDEST, NEWEST = (0, 29), (0, 33)
_WRITTEN = re.compile(r"""^(?:__version__ = )?version = ['"]([^'"]+)['"]""", re.MULTILINE)


def numbers(version: str) -> tuple[int, int]:
    """A version's first two numbers; (0, 0) where it has none."""
    found = re.match(r"(\d+)\.(\d+)", version)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def supported(version: str) -> bool:
    """Is the plugin made for this vLLM?"""
    return OLDEST <= numbers(version) <= NEWEST


def span() -> str:
    """The versions in words: "0.29 to 0.33"."""
    return " to ".join(".".join(map(str, version)) for version in (OLDEST, NEWEST))


def installed() -> tuple[int, int]:
    """The vLLM that this process has imported; (0, 0) where it has imported none."""
    return numbers(str(getattr(sys.modules.get("vllm"), "__version__", "")))


def written(folder: Path) -> str:
    """The version of the vLLM in a folder, as its build has written it down; "" where it has not."""
    file = folder / "vllm" / "_version.py"
    found = _WRITTEN.search(file.read_text()) if file.is_file() else None
    return found[1] if found else ""


def unfit() -> str:
    """The vLLM of this environment, if the plugin is not made for it; else "". It is not imported."""
    found = PathFinder.find_spec("vllm")
    version = written(Path(found.origin).parents[1]) if found and found.origin else ""
    return "" if not version or supported(version) else version
