"""How long a start will take, by the starts that were seen before.

A start has three parts, and each is a sum: weights grow with their bytes, compiling or loading graphs with the layers,
the rest with all of it, and on a node that has not been used yet. What each of these costs is fitted by Bayesian linear
regression (Bishop, "Pattern Recognition and Machine Learning", 3.3): rough prior figures, which what was seen replaces.
A model that was seen itself is foretold by its own last starts. What waits for Ray to place it, or for another
replica to compile, is no part of a start here. Intervals are conformal (Barber et al., "Predictive
inference with the jackknife+", 2021): as wide as the errors would have been for models that were seen, each of them
left out in turn.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from orchestrator.timeline.phases import COMPILE_PHASES

_OWN = 5  # last starts of the same model that count
_SURE = 0.8  # of the starts are to end within the interval
_UNSURE = 2.0  # the interval's factor until enough was seen
_OTHERS = ("placement", "cache wait")  # phases that wait for Ray, or for another replica's compile
_NOISE = (0.1, 0.05)  # seconds, and parts of the whole, by which two equal starts differ
_Features = Callable[["Seen"], tuple[float, ...]]


@dataclass(frozen=True)
class Size:
    """What a start has to bring up.

    Attributes:
        layers: of the model.
        weight_bytes: of the files that are read.
        ranks: processes that share it.
    """

    layers: int
    weight_bytes: int
    ranks: int


@dataclass(frozen=True)
class Seen:
    """A start that was seen, or one to come, which has no phases yet.

    Attributes:
        compiled: graphs were compiled, and not loaded.
        fresh: it was the first of its node.
        phases: seconds of each.
    """

    size: Size
    compiled: bool
    fresh: bool
    phases: Mapping[str, float]

    @classmethod
    def of(cls, report: Mapping[str, Any], *, fresh: bool) -> Seen | None:
        """A start by its `StartReport.as_dict`; None: its size is not known. What it waited for others is left out."""
        if not report.get("size"):
            return None
        phases: dict[str, float] = {}
        for phase in report["phases"]:
            if (name := phase["name"]) not in _OTHERS:
                phases[name] = phases.get(name, 0.0) + phase["seconds"]
        return cls(Size(**report["size"]), report["engine"]["compiled"] > 0, fresh, phases)

    @property
    def seconds(self) -> float:
        """The whole."""
        return sum(self.phases.values())


@dataclass(frozen=True)
class Expected:
    """Seconds until the first token, and an interval that four of five starts are to end in."""

    seconds: float
    low: float
    high: float


@dataclass(frozen=True)
class _Part:
    """Some phases: what they grow with, and for each of these the prior figure and how far off that may be."""

    phases: Callable[[str], bool]
    counts: Callable[[Seen], bool]
    features: _Features
    prior: tuple[tuple[float, float], ...]


def _gib(seen: Seen) -> float:
    return seen.size.weight_bytes / seen.size.ranks / 2**30


def _compiling(compiled: bool, *prior: tuple[float, float]) -> _Part:
    return _Part(
        phases=lambda name: name in COMPILE_PHASES,
        counts=lambda seen: seen.compiled == compiled,
        features=lambda seen: (1.0, seen.size.layers, seen.size.ranks - 1),
        prior=prior,
    )


_PARTS = (
    _Part(lambda name: name == "weights", lambda seen: True, lambda s: (1.0, _gib(s)), ((0.5, 1.0), (1.0, 3.0))),
    _compiling(True, (10.0, 20.0), (0.3, 1.0), (1.0, 5.0)),
    _compiling(False, (0.5, 2.0), (0.02, 0.1), (0.1, 1.0)),
    _Part(
        phases=lambda name: name != "weights" and name not in COMPILE_PHASES,
        counts=lambda seen: True,
        features=lambda s: (1.0, float(s.fresh), s.size.layers, _gib(s), s.size.ranks - 1),
        prior=((8.0, 20.0), (8.0, 20.0), (0.05, 0.3), (0.5, 2.0), (2.0, 5.0)),
    ),
)


class Forecast:
    """What is expected of a start.

    Args:
        seen: starts of one cluster, the latest last.
    """

    def __init__(self, seen: Sequence[Seen]) -> None:
        self._seen = list(seen)

    def expected(self, size: Size, *, compiled: bool, fresh: bool) -> Expected:
        """Of a start to come."""
        asked = Seen(size, compiled, fresh, {})
        if own := _own(self._seen, asked):
            return _interval(own, _factor(self._own_errors) or _factor(self._errors))
        return _interval(_fitted(self._seen, asked), _factor(self._errors))

    @cached_property
    def _errors(self) -> list[float]:
        """Of what would have been expected of each start, had no start of its size been seen."""
        found = []
        for size in {seen.size for seen in self._seen}:
            if others := [seen for seen in self._seen if seen.size != size]:
                found += [_error(s.seconds, _fitted(others, s)) for s in self._seen if s.size == size]
        return found

    @cached_property
    def _own_errors(self) -> list[float]:
        """Of what would have been expected of each start by those of the same model."""
        found = []
        for i, seen in enumerate(self._seen):
            if own := _own(self._seen[:i] + self._seen[i + 1 :], seen):
                found.append(_error(seen.seconds, own))
        return found


def _fitted(seen: Sequence[Seen], asked: Seen) -> float:
    parts = [part for part in _PARTS if part.counts(asked)]
    return sum(float(_fit(seen, part) @ part.features(asked)) for part in parts)


def _fit(seen: Sequence[Seen], part: _Part) -> np.ndarray:
    """Seconds for each feature, none below zero."""
    prior, spread = np.array(part.prior).T
    told = [s for s in seen if part.counts(s)]
    rows = np.array([part.features(s) for s in told]).reshape(len(told), len(prior))
    took = np.array([sum(v for name, v in s.phases.items() if part.phases(name)) for s in told])
    weight = 1 / np.array([_NOISE[0] + _NOISE[1] * s.seconds for s in told])
    free = np.ones(len(prior), bool)
    while True:
        a = rows[:, free] * weight[:, None]
        sure = np.diag(spread[free] ** -2)
        found = np.linalg.solve(a.T @ a + sure, a.T @ (took * weight) + sure @ prior[free])
        if (found >= 0).all():
            break
        free[np.flatnonzero(free)[int(found.argmin())]] = False
    fit = np.zeros(len(prior))
    fit[free] = found
    return fit


def _own(seen: Sequence[Seen], asked: Seen) -> float:
    """What the last starts of the same kind took; 0: there were none."""
    kind = (asked.size, asked.compiled, asked.fresh)
    own = [s.seconds for s in seen if (s.size, s.compiled, s.fresh) == kind]
    return statistics.median(own[-_OWN:]) if own else 0.0


def _error(took: float, expected: float) -> float:
    return abs(math.log(max(took, 0.01) / max(expected, 0.01)))


def _factor(errors: Sequence[float]) -> float | None:
    """The factor that holds `_SURE` of them, and one more to come; None: there are too few."""
    rank = math.ceil(_SURE * (len(errors) + 1))
    return math.exp(sorted(errors)[rank - 1]) if rank <= len(errors) else None


def _interval(seconds: float, factor: float | None) -> Expected:
    factor = factor or _UNSURE
    return Expected(seconds, seconds / factor, seconds * factor)
