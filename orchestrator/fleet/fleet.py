"""A plan's replicas on Ray: placed, started, asked, restarted, stopped."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any

import ray

from orchestrator.cluster import prestart
from orchestrator.engine import Sampling
from orchestrator.engine.start_report import StartReport
from orchestrator.engine.vllm import fork_context
from orchestrator.errors import OrchestratorError
from orchestrator.fleet import node_warmer
from orchestrator.fleet.creation import Creation
from orchestrator.fleet.dispatch import Dispatch
from orchestrator.fleet.placement import Placement
from orchestrator.fleet.plan import Plan, ReplicaPlan
from orchestrator.fleet.replica import Answer
from orchestrator.graph_cache.settings import CacheSettings
from orchestrator.progress import Say
from orchestrator.weights.settings import Weights

_STOP_S = 15.0
_COMPILE = "compile"


class Fleet:
    """All replicas of a plan. Use it as a context manager: leaving it leaves nothing behind.

    Args:
        plan: what to run.
        cache: the graph cache's settings.
        placement_timeout_s: seconds to wait for the replicas' resources.
        progress: told about once a second which phase each starting replica ended last.
        weights: the model, if it travels from node to node.
    """

    def __init__(
        self,
        plan: Plan,
        cache: CacheSettings,
        placement_timeout_s: float,
        progress: Say | None = None,
        weights: Weights | None = None,
    ) -> None:
        self.plan = plan
        self.reports: dict[str, StartReport] = {}
        self._cache, self._weights = cache, weights
        self._placement = Placement(placement_timeout_s)
        self._progress = progress or (lambda replica, phase: None)
        self._creation = Creation(cache, self._progress, weights)
        self._dispatch = Dispatch()
        self._actors: dict[str, Any] = {}  # all that are to be stopped; dispatch knows which of them are up

    def __enter__(self) -> Fleet:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self, *, at_once: bool = False) -> list[StartReport]:
        """Start the first replica, then all others together: the first compiles, the others find its graphs.

        All get their places first, so that other nodes make themselves ready while the first one compiles.

        Args:
            at_once: start all together; those that do not compile wait for the one that does.

        Raises:
            PlacementError: the cluster did not have room in time.
            EngineStartError: an engine did not come up.
            ReplicaError: a replica's process died.
        """
        first, *others = self.plan.replicas
        if at_once:
            self._start_together(self.plan.replicas)
            return [self.reports[replica.name] for replica in self.plan.replicas]
        requested = time.monotonic()
        self._placement.place(self.plan.replicas)
        if first.spec.preload:
            elsewhere = self._placement.nodes(others) - self._placement.nodes([first])
            workers = [prestart.AS_HERE] if first.spec.prestart_worker else []
            weights = [self._weights] if self._weights else []
            node_warmer.make_ready(elsewhere, self._cache, fork_context.MODULE, weights=weights, workers=workers)
        self._start_together([first], requested, self._compile_while_weights_travel(first, requested))
        self._start_together(others)
        return [self.reports[replica.name] for replica in self.plan.replicas]

    def _compile_while_weights_travel(self, first: ReplicaPlan, requested: float) -> float:
        """In the first replica's place, with made-up weights; it then finds the graphs. Does not fail.

        Returns:
            How many seconds that took.
        """
        if self._weights is None or self._weights.needed or not self.plan.share_graphs:
            return 0.0
        began = time.monotonic()
        spec = first.spec
        scratch = f"{spec.scratch}-compile"
        ahead = replace(
            first,
            name=_COMPILE,
            spec=replace(
                spec, replica=_COMPILE, args={**spec.args, "load_format": "dummy"}, scratch=scratch,
                cache_root=f"{scratch}/cache",
            ),
        )  # fmt: skip
        start = self._creation.begin(ahead, self._placement.group(first.name), requested, call="compile")
        try:
            for _ in self._creation.watch([start]):
                pass
        except OrchestratorError as error:
            self._progress(_COMPILE, f"{error}; the first replica compiles")
        finally:
            ray.kill(start.actor, no_restart=True)
        return time.monotonic() - began

    def start_one(self, name: str) -> StartReport:
        """Start one replica."""
        self._start_together([next(r for r in self.plan.replicas if r.name == name)])
        return self.reports[name]

    def stop_one(self, name: str) -> None:
        """Stop a replica; its placement group stays for the next start."""
        if name in self._actors:
            self._stop([name])

    def restart(self, name: str) -> StartReport:
        """Replace a replica, dead or alive, in its own placement group."""
        self.stop_one(name)
        return self.start_one(name)

    def ask(self, prompts: Sequence[str], sampling: Sampling) -> list[Answer | OrchestratorError]:
        """Spread prompts over the replicas. A request whose replica dies goes on to the next that lives.

        Returns:
            For each prompt its answer, or the error that it ended with; none is lost.
        """
        return self._dispatch.ask(prompts, sampling)

    def ask_one(self, name: str, prompts: Iterable[str], sampling: Sampling) -> list[Answer]:
        """Ask one replica all prompts at once; raises the first error."""
        return self._dispatch.ask_one(name, prompts, sampling)

    def stop(self) -> None:
        """Stop every replica and give its resources back. Does not fail."""
        self._stop(list(self._actors))
        self._placement.remove()

    def _start_together(
        self, replicas: Sequence[ReplicaPlan], requested: float | None = None, ahead_s: float = 0.0
    ) -> None:
        requested = requested or time.monotonic()
        self._placement.place(replicas)
        starts = [self._creation.begin(r, self._placement.group(r.name), requested, ahead_s=ahead_s) for r in replicas]
        self._actors |= {start.name: start.actor for start in starts}
        for name, report in self._creation.watch(starts):
            self.reports[name] = report
            self._dispatch.add(name, self._actors[name])

    def _stop(self, names: Sequence[str]) -> None:
        """Together; who does not stop in time is killed."""
        for name in names:
            self._dispatch.remove(name)
        stopping = [self._actors[name].stop.remote() for name in names]
        if stopping:  # else there may be no Ray any more
            ray.wait(stopping, num_returns=len(stopping), timeout=_STOP_S)
        for name in names:
            ray.kill(self._actors.pop(name), no_restart=True)
