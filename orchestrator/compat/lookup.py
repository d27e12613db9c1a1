"""Is a name there, with the signature that we know?"""

from __future__ import annotations

import dis
import importlib
import importlib.machinery
import inspect
import re
import sys
from typing import Any

from orchestrator.compat import versions
from orchestrator.compat.table import Line, Name

_NOTHING = object()
originals: dict[Name, Any] = {}  # what our patches stand in for


def fault(name: Name, *, load: bool) -> str:
    """What is wrong with a name; "" where nothing is.

    Args:
        name: which.
        load: import its module; else a module that is not imported yet is right, as long as there is one.
    """
    if not of_this_vllm(name):
        return ""
    if name.module not in sys.modules:
        if not load:
            return "" if _importable(name.module) else f"{name.module} is gone"
        try:
            importlib.import_module(name.module)
        except ModuleNotFoundError as error:
            gone = error.name is not None and f"{name.module}.".startswith(f"{error.name}.")
            return f"{name.module} is gone" if gone else f"{name.module} cannot be imported: {error}"
        except Exception as error:
            return f"{name.module} cannot be imported: {' '.join(str(error).split())[:200]}"
    if not name.attribute:
        return ""
    owner, last = owner_of(name)
    if owner is None:
        return f"{name} is gone"
    found = originals.get(name, _NOTHING)
    found = raw(owner, last) if found is _NOTHING else found
    if found is _NOTHING:
        return "" if _set_by_init(owner, last) else f"{name} is gone"
    return _wrong_signature(name, found)


def of_this_vllm(name: Name | Line) -> bool:
    """Is the vLLM that was imported new enough to have it?"""
    return not any(name.since) or versions.installed() >= name.since


def owner_of(name: Name) -> tuple[Any, str]:
    """The module, class or object that has the name's last part as its attribute; None where that is gone."""
    *path, last = name.attribute.split(".")
    owner: Any = sys.modules[name.module]
    for part in path:
        owner = getattr(owner, part, None)
    return owner, last


def raw(owner: Any, attribute: str) -> Any:
    """An attribute as it is stored: of a class a staticmethod stays one. `_NOTHING` where it is gone."""
    if inspect.isclass(owner):
        return inspect.getattr_static(owner, attribute, _NOTHING)
    return getattr(owner, attribute, _NOTHING)


def _importable(module: str) -> bool:
    """Is there such a module, as far as can be told without an import?"""
    parent = sys.modules.get(module.rpartition(".")[0])
    if parent is None:
        return True
    path = getattr(parent, "__path__", [])
    return importlib.machinery.PathFinder.find_spec(module, path) is not None


def _set_by_init(owner: Any, attribute: str) -> bool:
    """Do a class's instances get this attribute, by a declaration or in `__init__`?"""
    if not inspect.isclass(owner):
        return False
    for kind in owner.__mro__:
        code = getattr(inspect.unwrap(vars(kind).get("__init__", kind)), "__code__", None)
        if attribute in vars(kind).get("__annotations__", {}):
            return True
        if code and any(
            step.opname == "STORE_ATTR" and step.argval == attribute for step in dis.get_instructions(code)
        ):
            return True
    return False


def _wrong_signature(name: Name, found: Any) -> str:
    if name.takes is None and not name.named:
        return ""
    plain = found.__func__ if isinstance(found, (staticmethod, classmethod)) else found
    try:
        parameters = list(inspect.signature(plain).parameters.values())
    except (TypeError, ValueError):
        return wrong_parameters(name, None)
    if isinstance(found, classmethod):
        parameters = parameters[1:]
    return wrong_parameters(name, [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)])


def wrong_parameters(name: Name, names: list[str] | None) -> str:
    """What is wrong with the names of a callable's parameters; None: they cannot be told."""
    if names is None:
        return f"{name} cannot be called as it was"
    if missing := [p for p in name.named if p not in names]:
        return f"{name} takes no {', '.join(missing)}"
    if name.takes is not None and not _fits(name.takes, names):
        return f"{name} takes ({', '.join(names)}), we know ({name.takes})"
    return ""


def _fits(known: str, names: list[str]) -> bool:
    parts = [part for part in known.split(", ") if part]
    pattern = "".join(r"(?:\w+,)*" if part == "..." else re.escape(part) + "," for part in parts)
    return re.fullmatch(pattern, "".join(f"{name}," for name in names)) is not None
