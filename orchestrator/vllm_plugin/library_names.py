"""Names of Inductor's C++ libraries that do not depend on where the Python environment is.

Inductor names a library by its source and by the compiler's command line, which has the folders of headers and
libraries in it. Environments that Ray makes for a job (`runtime_env` with pip or uv), or that another image has
elsewhere, would not find the libraries that came with the graphs, and would compile each of them for seconds, though
the graphs are a hit. What lies in these folders is in the compile key by its versions.
"""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Callable
from functools import cache, wraps
from pathlib import Path

from orchestrator import compat
from orchestrator.compat import table


@cache
def install() -> None:
    """Wrap Inductor's hash of sources, once in a process."""
    compat.patch(table.CODE_HASH, _placeless)


def _placeless(plain: Callable[..., str]) -> Callable[..., str]:
    import torch

    places = _places(Path(torch.__file__).parent)

    @wraps(plain)
    def code_hash(code: str | bytes, extra: str | bytes = "") -> str:
        return plain(code, without_places(extra, places) if isinstance(extra, str) else extra)

    return code_hash


def _places(torch_folder: Path) -> dict[str, str]:
    """Folders of this environment, and what stands for them; those that lie in others come first."""
    found = {
        sys.base_prefix: "BASE",
        sys.prefix: "ENVIRONMENT",
        str(torch_folder): "TORCH",
        sysconfig.get_path("include"): "INCLUDE",
        sysconfig.get_path("platinclude"): "INCLUDE",
        sysconfig.get_config_var("LIBDIR") or "": "LIBRARIES",
    }
    return {place: found[place] for place in sorted(found, key=len, reverse=True) if place}


def without_places(command: str, places: dict[str, str]) -> str:
    """A command line without the folders.

    Args:
        command: the line.
        places: folder -> what stands for it, in the order in which they are looked for.
    """
    for place, name in places.items():
        command = command.replace(place, f"<{name}>")
    return command
