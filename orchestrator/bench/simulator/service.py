"""A service under an autoscaling policy, as discrete events: Ray Serve's real policy wrapper, made-up replicas.

Left out: the router's mistakes (a request goes to the replica with the fewest), prefill (a slot answers at once), nodes
that have to boot, and starts that fail.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from unittest import mock

from ray.serve import autoscaling_policy
from ray.serve.config import AutoscalingConfig, AutoscalingContext

from orchestrator import compat
from orchestrator.bench.simulator.traces import Trace
from orchestrator.compat import table

_TICK_S = 1.0
_RECORD = 0.2  # of look_back_period_s: how often Ray Serve's handles take a sample


@dataclass(frozen=True)
class Replicas:
    """What replicas are like.

    Attributes:
        start_s: from the decision to the first token.
        slots: requests that one works on at a time; more wait in it.
        answer_s: median seconds for an answer; they are log-normal.
        late_s: a first token that comes later than this is a miss.
    """

    start_s: float
    slots: int = 8
    answer_s: float = 6.0
    late_s: float = 2.0


@dataclass
class Outcome:
    """How it went.

    Attributes:
        requests: that came.
        misses: of these, whose first token came late.
        replica_s: seconds of all replicas, their starts included.
        changes: how often the number of replicas turned from growing to shrinking, or back.
    """

    requests: int = 0
    misses: int = 0
    replica_s: float = 0.0
    changes: int = 0


@dataclass(eq=False)
class _Replica:
    ready: float
    busy: int = 0
    leaving: bool = False
    waiting: deque[float] = field(default_factory=deque)

    @property
    def load(self) -> int:
        return self.busy + len(self.waiting)


class _Service:
    def __init__(self, like: Replicas, seed: int) -> None:
        self.like, self.outcome = like, Outcome()
        self.replicas: list[_Replica] = []
        self.held: deque[float] = deque()  # where there is no replica
        self._draw = random.Random(seed)
        self._ends: list[tuple[float, int, _Replica]] = []
        self._count = 0

    def ongoing(self) -> int:
        return len(self.held) + sum(r.load for r in self.replicas)

    def running(self, now: float) -> list[_Replica]:
        """Those that take requests."""
        return [r for r in self.replicas if r.ready <= now and not r.leaving]

    def arrive(self, now: float) -> None:
        self.outcome.requests += 1
        self.held.append(now)
        self._seat(now)

    def until(self, now: float) -> None:
        """Let answers end that end by now."""
        while self._ends and self._ends[0][0] <= now:
            at, _, replica = heapq.heappop(self._ends)
            replica.busy -= 1
            if replica.waiting:
                self._begin(replica, replica.waiting.popleft(), at)
        self._seat(now)
        self.replicas = [r for r in self.replicas if r.load or not r.leaving]

    def scale(self, target: int, now: float) -> None:
        staying = [r for r in self.replicas if not r.leaving]
        self.replicas += [_Replica(now + self.like.start_s) for _ in range(target - len(staying))]
        # those that are not ready yet go first, then those with the least to do
        order = sorted(staying, key=lambda r: (r.ready <= now, r.load, -r.ready))
        for replica in order[: max(0, len(staying) - target)]:
            replica.leaving = True
            self.held.extend(replica.waiting)
            replica.waiting.clear()

    def _seat(self, now: float) -> None:
        """Whom a replica can take goes to the one with the least to do."""
        there = self.running(now) if self.held else []
        while self.held and there:
            replica, came = min(there, key=lambda r: r.load), self.held.popleft()
            if replica.busy < self.like.slots:
                self._begin(replica, came, now)
            else:
                replica.waiting.append(came)

    def _begin(self, replica: _Replica, came: float, now: float) -> None:
        self.outcome.misses += now - came > self.like.late_s
        replica.busy += 1
        self._count += 1
        heapq.heappush(self._ends, (now + self._draw.lognormvariate(0, 0.5) * self.like.answer_s, self._count, replica))


class _Reports:
    """What Ray Serve's controller knows of the load: a handle's samples, which it reports now and then.

    Their mean begins where each replica has been sampled, so that a new replica makes the window shorter.
    """

    def __init__(self, config: AutoscalingConfig) -> None:
        self.load = 0.0
        self._config = config
        self._samples: deque[tuple[float, int]] = deque()
        self._next_sample = self._next_report = 0.0

    def look(self, now: float, service: _Service) -> None:
        if now >= self._next_sample:
            self._next_sample = now + _RECORD * self._config.look_back_period_s
            self._samples.append((now, service.ongoing()))
        if now >= self._next_report:
            self._next_report = now + self._config.metrics_interval_s
            newest = max((replica.ready for replica in service.running(now)), default=0.0)
            since = min(max(now - self._config.look_back_period_s, newest), self._samples[-1][0])
            while self._samples[0][0] < since:
                self._samples.popleft()
            self.load = sum(load for _, load in self._samples) / len(self._samples)


def simulate(
    policy: Callable[[Any], Any], config: AutoscalingConfig, trace: Trace, like: Replicas, seed: int
) -> Outcome:
    """Let a load meet a policy.

    Args:
        policy: as Ray Serve takes it, by `AutoscalingPolicy`.
        config: delays, bounds, target.
        trace: the load.
        like: the replicas.
        seed: of arrivals and answers.
    """
    service = _Service(like, seed)
    service.replicas = [_Replica(0.0) for _ in range(config.min_replicas)]
    arrivals = trace.arrivals(seed)
    target, grew = config.min_replicas, 0
    state: dict[str, Any] = {}
    seen = _Reports(config)
    wrapped = compat.get(table.SCALING)(policy)  # with Ray Serve's delays and factors
    coming = next(arrivals, float("inf"))
    with _clock() as clock:
        while clock.now < trace.seconds:
            clock.now += _TICK_S
            while coming <= clock.now:
                service.until(coming)
                service.arrive(coming)
                coming = next(arrivals, float("inf"))
            service.until(clock.now)
            seen.look(clock.now, service)
            service.outcome.replica_s += len(service.replicas) * _TICK_S
            running = len(service.running(clock.now))
            wanted, state = wrapped(_context(clock.now, running, target, seen.load, state, config))
            wanted = min(max(round(wanted), config.min_replicas), config.max_replicas)
            if wanted != target:
                turned = 1 if wanted > target else -1
                service.outcome.changes += turned != grew
                grew = turned
                service.scale(wanted, clock.now)
                target = wanted
    return service.outcome


def _context(now: float, running: int, target: int, load: float, state: dict[str, Any], config: Any) -> Any:
    return AutoscalingContext(
        deployment_id=None, deployment_name="model", app_name="simulated", current_num_replicas=running,
        target_num_replicas=target, running_replicas=[None] * running, total_num_requests=load,
        total_queued_requests=0.0, aggregated_metrics={}, raw_metrics={},
        capacity_adjusted_min_replicas=config.min_replicas, capacity_adjusted_max_replicas=config.max_replicas,
        policy_state=state, last_scale_up_time=None, last_scale_down_time=None, current_time=now, config=config,
    )  # fmt: skip


@contextmanager
def _clock() -> Iterator[Any]:
    """Ray Serve's delays by a clock that we turn."""
    clock = SimpleNamespace(now=0.0)
    clock.time = lambda: clock.now
    with mock.patch.object(autoscaling_policy, "time", clock):
        yield clock
