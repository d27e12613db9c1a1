"""Put our code in the place of a name, wherever the original is held, and take note where that does not reach."""

from __future__ import annotations

import inspect
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType, ModuleType
from typing import Any

from orchestrator.compat import lookup
from orchestrator.compat.features import Feature
from orchestrator.compat.table import TABLE, Name

# Modules of these get the patch as well, if they imported the name before; what others do with it, we cannot know.
OURS_TO_PATCH = ("vllm", "ray", "torch", "orchestrator")
PREFIX = "compat: "
_logger = logging.getLogger("vllm.orchestrator")  # vLLM's handlers print it, and ours makes it an event
_notes: list[str] = []


class Gone(LookupError):
    """A name is not as we know it; the message says what is off."""


def check() -> list[str]:
    """What is off, and why. Looks at all names whose modules are imported, and imports nothing."""
    return [line for name in TABLE for line in _findings(name, lookup.fault(name, load=False))]


def notes() -> tuple[str, ...]:
    """All that was found in this process, or in the one that it was forked from."""
    return tuple(_notes)


def tell() -> None:
    """Log what was found before this process had its log, or had anyone to tell."""
    for line in _notes:
        _logger.warning("%s%s", PREFIX, line)


def on(feature: Feature) -> bool:
    """Are all names of a feature as we know them? Imports their modules."""
    return not [x for name in TABLE if feature in name.features for x in _findings(name, lookup.fault(name, load=True))]


def get(name: Name) -> Any:
    """What a name stands for.

    Raises:
        Gone: it is not as we know it.
    """
    if lines := _findings(name, lookup.fault(name, load=True)):
        raise Gone(lines[0])
    if not name.attribute:
        return sys.modules[name.module]
    return getattr(*lookup.owner_of(name))


def read(name: Name, owner: Any) -> Any:
    """What an object has under a name's last part; None where this vLLM has no such thing."""
    return getattr(owner, name.attribute.rpartition(".")[2], None)


def load(name: Name) -> None:
    """Import a name's module ahead of its use; without it that import only comes later."""
    _findings(name, lookup.fault(name, load=True))


def patch(name: Name, make: Callable[[Any], Any]) -> bool:
    """Replace a name for good; says whether it did.

    Args:
        name: which.
        make: gets what the name stands for (of a classmethod the function), returns what shall stand there.
    """
    if _findings(name, lookup.fault(name, load=True)):
        return False
    _replace(name, make)
    return True


@contextmanager
def replaced(name: Name, make: Callable[[Any], Any]) -> Iterator[bool]:
    """The same for a while."""
    if _findings(name, lookup.fault(name, load=True)):
        yield False
        return
    known = name in lookup.originals
    undo = _replace(name, make)
    try:
        yield True
    finally:
        for step in reversed(undo):
            step()
        if not known:
            del lookup.originals[name]


@contextmanager
def answered(name: Name, answer: Callable[..., Any]) -> Iterator[bool]:
    """Have a function answer something else for a while, whoever holds it and whoever gets hold of it meanwhile.

    It stays the same object, and its code is exchanged: Dynamo and Triton keep torch's functions in lists and objects
    of their own, which `replaced` does not reach, and would keep ours.
    """
    if _findings(name, lookup.fault(name, load=True)):
        yield False
        return
    plain = lookup.raw(*lookup.owner_of(name))
    if not isinstance(plain, FunctionType) or plain.__closure__:
        _findings(name, f"{name} is no plain function")
        yield False
        return
    before = plain.__code__, plain.__defaults__, plain.__kwdefaults__
    lookup.originals[name] = FunctionType(plain.__code__, plain.__globals__, plain.__name__, plain.__defaults__)
    plain.__code__, plain.__defaults__, plain.__kwdefaults__ = _forward.__code__, None, {"_answer": answer}
    try:
        yield True
    finally:
        plain.__code__, plain.__defaults__, plain.__kwdefaults__ = before
        del lookup.originals[name]


def _forward(*words: Any, _answer: Callable[..., Any], **named: Any) -> Any:
    return _answer(*words, **named)


def _replace(name: Name, make: Callable[[Any], Any]) -> list[Callable[[], None]]:
    owner, last = lookup.owner_of(name)
    before = lookup.raw(owner, last)
    kind = type(before) if isinstance(before, (staticmethod, classmethod)) else None
    plain = before.__func__ if kind else before
    holders = list(_holders(plain, last, owner)) if isinstance(owner, ModuleType) and callable(plain) else []
    children = [k for k in type.__subclasses__(plain) if not _ours(k.__module__)] if inspect.isclass(plain) else []
    made = make(plain)
    made = kind(made) if kind else made
    undo = [_set(owner, last, before, made)]
    lookup.originals.setdefault(name, before)
    for module in holders:
        if module.__name__.partition(".")[0] in OURS_TO_PATCH:
            undo.append(_set(module, last, before, made))
        else:
            _note(name, "passed by", f"{module.__name__} imported {name} before it was patched")
    for child in children:
        _note(
            name, "passed by", f"{child.__module__}.{child.__qualname__} was derived from {name} before it was patched"
        )
    return undo


def _holders(original: Any, name: str, home: Any) -> Iterator[ModuleType]:
    """Other modules that hold an object under its name, by `from ... import name`."""
    for module in list(sys.modules.values()):
        if isinstance(module, ModuleType) and module is not home and vars(module).get(name) is original:
            yield module


def _set(owner: Any, attribute: str, before: Any, value: Any) -> Callable[[], None]:
    inherited = inspect.isclass(owner) and attribute not in vars(owner)
    setattr(owner, attribute, value)
    return (lambda: delattr(owner, attribute)) if inherited else (lambda: setattr(owner, attribute, before))


def _ours(module: str) -> bool:
    return module.partition(".")[0] == "orchestrator"


def _findings(name: Name, fault: str) -> list[str]:
    return [_note(name, "off", fault, feature) for feature in name.features] if fault else []


def _note(name: Name, how: str, what: str, feature: Feature | None = None) -> str:
    line = f"{(feature or name.features[0]).name} {how}: {what}"
    if line not in _notes:
        _notes.append(line)
        _logger.warning("%s%s", PREFIX, line)
    return line
