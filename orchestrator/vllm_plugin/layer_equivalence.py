"""Are layers the same but for their own weights? What one shares with the rest of the model, all have to share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

_PLAIN = (str, bytes, int, float, complex, bool, type(None), torch.dtype, torch.device, type)
_DEPTH = 6  # a layer, its attention, its implementation, that one's settings; deeper ones are shared by all
_Level = list[tuple[str, Any]]  # (path, object)


def alike(layers: list[nn.Module], model: nn.Module) -> bool:
    """Do all layers have the same shapes, the same aliases inside, and the same shared objects at the same paths?

    An object is shared if it is reached from two layers, or from a layer and the model around them. Numbers, strings
    and functions are not looked at: Dynamo guards those by their path.
    """
    around = _around(model, {id(layer) for layer in layers})
    levels: list[_Level] = [[("", layer)] for layer in layers]
    seen: list[dict[int, str]] = [{} for _ in layers]
    for _ in range(_DEPTH):
        counts = Counter(found for level in levels for found in {id(obj) for _, obj in level})
        signatures, following = [], []
        for level, known in zip(levels, seen, strict=True):
            signature, own = _look(level, known, counts, around)
            signatures.append(signature)
            following.append(own)
        if any(signature != signatures[0] for signature in signatures):
            return False
        levels = following
    return True


def _look(level: _Level, known: dict[int, str], counts: Counter[int], around: set[int]) -> tuple[list[Any], _Level]:
    """One level of one layer: what is to be compared, and the objects of its own below."""
    signature: list[Any] = []
    below: _Level = []
    for path, obj in level:
        if id(obj) in known:
            signature.append((path, "is", known[id(obj)]))
            continue
        known[id(obj)] = path
        if counts[id(obj)] > 1 or id(obj) in around:
            signature.append((path, "shared", id(obj)))
            continue
        signature.append((path, *_form(obj)))
        below += [(f"{path}.{name}", part) for name, part in _parts(obj)]
    return signature, below


def _form(obj: Any) -> tuple[Any, ...]:
    if isinstance(obj, torch.Tensor):
        return type(obj), tuple(obj.shape), obj.stride(), obj.dtype, obj.device
    return (type(obj),)


def _parts(obj: Any) -> Iterator[tuple[str, Any]]:
    """An object's attributes and entries that have an identity."""
    if isinstance(obj, torch.Tensor):
        return
    found: list[tuple[Any, Any]] = list(getattr(obj, "__dict__", {}).items())
    if isinstance(obj, dict):
        found += list(obj.items())
    elif isinstance(obj, (list, tuple)):
        found += list(enumerate(obj))
    for name, part in found:
        if not isinstance(part, _PLAIN) and not callable(getattr(part, "__func__", None)):
            yield str(name), part


def _around(model: nn.Module, layers: set[int]) -> set[int]:
    """The objects that the model holds beside these layers."""
    found: set[int] = set()
    left: list[Any] = [model]
    while left:
        obj = left.pop()
        if id(obj) in layers or id(obj) in found:
            continue
        found.add(id(obj))
        if isinstance(obj, (nn.Module, dict, list, tuple)):
            left += [part for _, part in _parts(obj)]
    return found
