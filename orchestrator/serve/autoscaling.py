"""Scale ahead of the load by as long as a start takes: a policy for Ray Serve's own autoscaler.

Ray Serve's default policy sees load, waits `upscale_delay_s`, and meets the load one start later. This one asks for the
replicas that the load will need by then. It knows the load's past: a period that repeats (found by autocorrelation, as
in Vlachos et al., "On periodicity detection and structural periodic similarity", SDM 2005), else a trend (a line
through the last minutes, by least squares). It knows how long starts take: what it saw itself, a guess before that.

Ray Serve pickles this module by value and runs it in its controller, where nothing else of this package may be found:
when it runs it imports none of it.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from orchestrator.config import ServeConfig

_SCALES = ((5.0, 2880), (300.0, 2304))  # seconds for each sample, and how many are kept: four hours, eight days
_LOOK_FOR_PERIODS_S = 60.0
_ALIKE = 0.5  # autocorrelation from which a period is believed
_SAME = 0.3  # how far the load may be from the same time of earlier periods
_CHANGE = 1.5  # a load that is so many square roots away is no chance: what comes at random varies by about one
_SETTLES_S = 120.0  # of the level, where nothing changes
_SPARE = 0.7  # square roots of the load, for chance (square-root staffing: Halfin and Whitt, 1981)
_BAND = 0.12  # of a replica: what is nearer to a whole number of them changes nothing
_TREND = (30.0, 20)  # seconds for each point of the line, and how many
_SURE = 4.0  # standard errors of the line's slope
_STEEP = 1.5  # a trend is followed up to so many times the load
_STARTS = 5  # remembered


class History:
    """Means of the load over steps of equal length."""

    def __init__(self, step_s: float, length: int) -> None:
        self.step_s = step_s
        self.values: list[float] = []  # at most `length`
        self._length = length
        self.period = 0  # in steps; 0: none is known
        self._sum, self._count, self._until = 0.0, 0, 0.0

    def add(self, now: float, load: float) -> None:
        """Take a sample."""
        self._until = self._until or now + self.step_s
        while now >= self._until:
            mean = self._sum / self._count if self._count else load
            self.values.append(mean)
            del self.values[: -self._length]
            self._sum, self._count, self._until = 0.0, 0, self._until + self.step_s
        self._sum, self._count = self._sum + load, self._count + 1

    def find_period(self) -> None:
        """Look for the lag, beyond the first descent, at which the load is most like itself; it has to fit in twice."""
        load = np.sqrt(self.values)  # so that a queue that piled up once does not outweigh all else
        self.period, n = 0, len(load)
        load = load - load.mean() if n else load
        if n < 8 or not load.any():
            return
        power = np.abs(np.fft.rfft(load, 2 * n)) ** 2
        alike = np.fft.irfft(power)[: n // 2 + 1] / np.arange(n, n - n // 2 - 1, -1)  # each lag has fewer pairs
        alike = alike / alike[0]
        descent = np.flatnonzero(alike < 0)
        if not len(descent) or (best := alike[descent[0] :].max()) < _ALIKE:
            return
        # twice a period is as good: take the first lag that is nearly as good as the best, and climb to its top
        lag = int(descent[0] + np.flatnonzero(alike[descent[0] :] >= 0.8 * best)[0])
        while lag + 1 < len(alike) and alike[lag + 1] >= alike[lag]:
            lag += 1
        self.period = lag

    def before(self, first_s: float, last_s: float) -> float | None:
        """The load that earlier periods had from `first_s` to `last_s` seconds after this moment; None: no period."""
        if not self.period or last_s >= self.period * self.step_s:
            return None
        first, last = round(first_s / self.step_s), math.ceil(last_s / self.step_s)
        begins = [len(self.values) - back * self.period + first for back in (1, 2, 3)]
        seen = [self.values[begin : begin + last - first + 1] for begin in begins if begin >= 0]
        same = [sum(at) / len(at) for at in zip(*seen, strict=False)]  # chance is no part of what repeats
        return max(same, default=None)


class AheadPolicy:
    """`policy_function` of Ray Serve's `AutoscalingPolicy`; one for each deployment.

    Args:
        start_s: how long a start takes, until one was seen.
    """

    def __init__(self, start_s: float) -> None:
        self._guess = start_s
        self._starts: deque[float] = deque(maxlen=_STARTS)
        self._asked: tuple[float, int] | None = None  # when more replicas were asked for, and how many there are to be
        self._histories = [History(*scale) for scale in _SCALES]
        self._points = History(*_TREND)
        self._level = self._seen = self._looked = self._changing = 0.0
        self._line: tuple[list[float], float] = [], 0.0  # points, and their slope
        self._falling: float | None = None  # since when fewer replicas have been asked for

    @property
    def start_s(self) -> float:
        """How long a start takes: the longest of the last ones."""
        return max(self._starts, default=self._guess)

    def __call__(self, ctx: Any) -> tuple[float, dict[str, Any]]:
        """How many replicas there are to be.

        Args:
            ctx: Ray Serve's AutoscalingContext.
        """
        now, config, target = ctx.current_time, ctx.config, ctx.target_num_replicas
        self._see(now, float(ctx.total_num_requests), config.look_back_period_s, ctx.current_num_replicas, target)
        # what is measured is a mean of the past, so a rise shows late
        horizon = self.start_s + config.upscale_delay_s + config.look_back_period_s
        each, wait = config.get_target_ongoing_requests(), config.downscale_delay_s
        season = self._season(0.0, horizon)
        need = max(self._level, self._trend(horizon)) if season is None else season
        if now >= self._changing:  # while it changes, the load has a queue in it that will go again
            need = _with_spare(need)
        need /= each
        more, fewer = math.ceil(need - _BAND), math.ceil(need + _BAND)
        if more > target:
            self._falling = None
            return float(more), {}
        if fewer < target:
            self._falling = now if self._falling is None else self._falling
            return float(fewer), {}
        # Ray Serve waits before it takes replicas away: ask early, if by then the load will have fallen
        since = now if self._falling is None else self._falling
        left = wait - (now - since)
        later = self._season(left, left + horizon) if left > 0.05 * wait else None
        if later is not None and math.ceil(_with_spare(later) / each + _BAND) < target:
            self._falling = since
            return float(target - 1), {}
        self._falling = None
        return float(target), {}

    def _see(self, now: float, load: float, window_s: float, running: int, target: int) -> None:
        for history in self._histories:
            history.add(now, load)
        self._points.add(now, load)
        if abs(load - self._level) > _CHANGE * math.sqrt(max(load, self._level, 1.0)):
            self._changing = now + window_s
        if now < self._changing:
            self._level = load
        else:
            self._level += (load - self._level) * min(1.0, (now - self._seen) / _SETTLES_S)
        self._seen = now
        if now - self._looked >= _LOOK_FOR_PERIODS_S:
            self._looked = now
            for history in self._histories:
                history.find_period()
        if self._asked is None and target > running:
            self._asked = now, target
        elif self._asked is not None:
            if running >= self._asked[1]:
                self._starts.append(now - self._asked[0])
                self._asked = None
            elif target < self._asked[1]:  # they are not to come any more
                self._asked = None

    def _season(self, first_s: float, last_s: float) -> float | None:
        """What a period that is known, and that the load keeps to, says of a time from now; None: there is none."""
        for history in self._histories:
            found, same = history.before(first_s, last_s), history.before(0.0, 0.0)
            if found is None or same is None:
                continue
            if abs(same - self._level) <= _SAME * max(same, self._level) + 1.0:
                return found * max(1.0, self._level / max(same, 1.0) - _SAME / 2)  # it may have grown
        return None

    def _trend(self, ahead_s: float) -> float:
        """The load some time ahead, by a line through the last minutes, where it goes up for sure; else 0."""
        since = int((self._seen - self._changing) / _TREND[0])  # a jump is no trend
        recent = self._points.values[-since:] if since > 0 else []
        if self._line[0] != recent:  # it changes only now and then
            self._line = recent, _slope(np.array(recent))
        slope = self._line[1]
        return min(self._level + slope * ahead_s / _TREND[0], _STEEP * max(self._level, 1.0)) if slope else 0.0


def _slope(recent: np.ndarray) -> float:
    """For each step, by least squares; 0: there are too few, or it does not go up for sure."""
    if len(recent) < _TREND[1] // 4:
        return 0.0
    steps = np.arange(len(recent)) - (len(recent) - 1) / 2
    slope = float((steps * recent).sum() / (steps**2).sum())
    off = recent - recent.mean() - slope * steps
    error = math.sqrt(float((off**2).sum()) / (len(recent) - 2) / float((steps**2).sum()))
    return slope if slope > _SURE * error else 0.0


def settings(serve: ServeConfig) -> dict[str, Any]:
    """What Ray Serve's AutoscalingConfig takes of ours."""
    names = ("min_replicas", "max_replicas", "target_ongoing_requests", "upscale_delay_s", "downscale_delay_s")
    found = {name: getattr(serve, name) for name in names}
    if serve.autoscaling.value == "ahead":  # else Ray Serve's own
        where = f"{AheadPolicy.__module__}:{AheadPolicy.__name__}"
        found["policy"] = {"policy_function": where, "policy_kwargs": {"start_s": serve.start_s}}
    return found


def _with_spare(load: float) -> float:
    return load + _SPARE * math.sqrt(load)
