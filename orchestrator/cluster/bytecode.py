"""Does Python find its modules compiled? Where it does not, each process compiles thousands of them while it imports.

Seen here: vLLM and Ray import in 9 s with bytecode and in 20 s without. It is missing more often than one thinks: uv
installs none unless it is told to, many images set PYTHONDONTWRITEBYTECODE, and Python says nothing where it may not
write. https://docs.astral.sh/uv/guides/integration/docker/#compiling-bytecode
"""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
import sysconfig
from importlib.machinery import ModuleSpec

_FEW = 100  # modules: compiling these takes no time that anyone notices


def complete(*packages: str) -> bool:
    """Have the packages that are installed been compiled, as far as their first module tells? Imports nothing."""
    specs = [importlib.util.find_spec(package) for package in packages]
    return all(spec is None or spec.cached is None or os.path.exists(spec.cached) for spec in specs)


@functools.cache
def note() -> str:
    """How many of the imported modules are compiled anew by each process, why, and what to do; "" where few are.

    Looks once; a fork knows what was found before it.
    """
    specs = [getattr(module, "__spec__", None) for module in list(sys.modules.values())]
    kept = [spec.cached for spec in specs if isinstance(spec, ModuleSpec) and spec.has_location and spec.cached]
    lost = [path for path in kept if not os.path.exists(path)]
    if len(lost) < _FEW:
        return ""
    packages = sysconfig.get_path("purelib")
    if sys.dont_write_bytecode:
        why = "PYTHONDONTWRITEBYTECODE is set"
    elif not os.access(packages, os.W_OK):
        why = f"{packages} cannot be written"
    else:
        why = "it could not be written"
    return (
        f"slow imports: {len(lost)} of {len(kept)} modules have no bytecode, and each process compiles them ({why}); "
        f"where the environment or image is made, run: python -m compileall -q -j 0 {packages}"
    )
