"""Arrivals of requests that an autoscaler may meet: rates over time, and seeded Poisson arrivals of these rates."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Trace:
    """A load.

    Attributes:
        seconds: how long it lasts.
        most: the highest rate, in requests a second.
        rate: requests a second at a time, which is in seconds.
        foreseen: it repeats, or rises slowly enough to be foreseen.
    """

    name: str
    seconds: float
    most: float
    rate: Callable[[float], float]
    foreseen: bool = True

    def arrivals(self, seed: int) -> Iterator[float]:
        """Times of requests, by thinning (Lewis and Shedler, 1979)."""
        draw, at = random.Random(f"{self.name} {seed}"), 0.0
        while (at := at + draw.expovariate(self.most)) < self.seconds:
            if draw.random() * self.most < self.rate(at):
                yield at


def _day(at: float) -> float:
    """Two peaks, at 10 and at 20 o'clock, and a quiet night."""
    hour = at / 3600 % 24
    peaks = (math.exp(-(((hour - top) / width) ** 2)) for top, width in ((10.0, 2.5), (20.0, 2.0)))
    return 0.3 + 4.0 * sum(peaks)


def _bursts(seed: int, seconds: float) -> Callable[[float], float]:
    """Now and then, for two minutes on average, five times as many."""
    draw, at, spans = random.Random(seed), 0.0, []
    while at < seconds:
        at += draw.expovariate(1 / 900)
        spans.append((at, at := at + draw.expovariate(1 / 120)))
    return lambda now: 5.0 if any(first <= now < last for first, last in spans) else 1.0


def traces(seed: int) -> tuple[Trace, ...]:
    """All of them; the seed decides when bursts come."""
    return (
        Trace("square waves", 3 * 3600, 6.0, lambda at: 6.0 if at % 900 >= 450 else 1.0),
        Trace("slow ramps", 3 * 3600, 6.0, lambda at: 0.5 + 5.5 * (1 - abs(at % 5400 / 2700 - 1))),
        Trace("steep ramps", 3 * 3600, 6.0, lambda at: 0.5 + 5.5 * max(0.0, 1 - abs(at % 2400 / 600 - 1))),
        Trace("days with two peaks", 4 * 86400, 4.5, _day),
        Trace("bursts", 6 * 3600, 5.0, _bursts(seed, 6 * 3600), foreseen=False),
    )
