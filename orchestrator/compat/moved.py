"""Modules of vLLM that a library still imports by their old name."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

from orchestrator.compat.table import MOVED


def follow() -> None:
    """From now on an import of a module that moved finds it where it is, in this process."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())  # the last one is asked only where all others have found nothing


class _Finder(MetaPathFinder, Loader):
    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        return ModuleSpec(name, self) if name in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        now = importlib.import_module(MOVED[module.__name__])
        vars(module).update({name: value for name, value in vars(now).items() if not name.startswith("__")})
