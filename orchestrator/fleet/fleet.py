"""Replicas as Ray actors: placement, start, dispatch, restart, stop."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError
from ray.util.placement_group import placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from orchestrator import zygote
from orchestrator.engine import Sampling
from orchestrator.engine.start_report import StartReport
from orchestrator.engine.vllm import fork_context
from orchestrator.errors import EngineDeadError, OrchestratorError, PlacementError, ReplicaError
from orchestrator.fleet import node_warmer
from orchestrator.fleet.plan import Plan, ReplicaPlan
from orchestrator.fleet.replica import Answer, Replica
from orchestrator.graph_cache.settings import CacheSettings

Progress = Callable[[str, str], None]  # (replica, phase that ended last)
_MARGIN_S = 30.0  # for what surrounds an engine's own deadline: imports, cache wait, first token
_STOP_S = 15.0


class Fleet:
    """All replicas of a plan. Use it as a context manager: leaving it leaves nothing behind.

    Args:
        plan: what to run.
        cache: the graph cache's settings.
        placement_timeout_s: seconds to wait for a replica's resources.
        progress: called about once a second per starting replica.
    """

    def __init__(
        self, plan: Plan, cache: CacheSettings, placement_timeout_s: float, progress: Progress | None = None
    ) -> None:
        self.plan = plan
        self.reports: dict[str, StartReport] = {}
        self._cache = cache
        self._placement_timeout_s = placement_timeout_s
        self._progress = progress or (lambda replica, phase: None)
        self._groups: dict[str, Any] = {}
        self._actors: dict[str, Any] = {}

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
        self._place(self.plan.replicas)
        if first.spec.preload:
            elsewhere = self._nodes(others) - self._nodes([first])
            node_warmer.make_ready(elsewhere, self._cache, fork_context.MODULE)
        self._start_together([first], requested)
        self._start_together(others)
        return [self.reports[replica.name] for replica in self.plan.replicas]

    def start_one(self, name: str) -> StartReport:
        """Start one replica."""
        self._start_together([next(r for r in self.plan.replicas if r.name == name)])
        return self.reports[name]

    def stop_one(self, name: str) -> None:
        """Stop a replica; its placement group stays for the next start."""
        if name in self._actors:
            ray.wait([self._actors[name].stop.remote()], timeout=_STOP_S)
            self._kill(name)

    def restart(self, name: str) -> StartReport:
        """Replace a replica, dead or alive, in its own placement group."""
        self.stop_one(name)
        return self.start_one(name)

    def ask(self, prompts: Sequence[str], sampling: Sampling) -> list[Answer | OrchestratorError]:
        """Spread prompts over the replicas. A request whose replica dies is asked once more, of another.

        Returns:
            For each prompt its answer, or the error that it ended with; none is lost.
        """
        names = itertools.cycle(list(self._actors))
        asked = [(prompt, name := next(names), self._ask(name, prompt, sampling)) for prompt in prompts]
        answers: list[Answer | OrchestratorError] = []
        for prompt, name, ref in asked:
            answer = self._result(name, ref)
            if isinstance(answer, (ReplicaError, EngineDeadError)):
                other = next((n for n in self._actors if n != name), None)
                answer = answer if other is None else self._result(other, self._ask(other, prompt, sampling))
            answers.append(answer)
        return answers

    def ask_one(self, name: str, prompts: Iterable[str], sampling: Sampling) -> list[Answer]:
        """Ask one replica all prompts at once; raises the first error."""
        refs = [self._ask(name, prompt, sampling) for prompt in prompts]
        answers = []
        for ref in refs:
            answer = self._result(name, ref)
            if not isinstance(answer, Answer):
                raise answer
            answers.append(answer)
        return answers

    def stop(self) -> None:
        """Stop every replica and give its resources back. Does not fail."""
        stopping = {name: actor.stop.remote() for name, actor in self._actors.items()}
        if stopping:
            ray.wait(list(stopping.values()), num_returns=len(stopping), timeout=_STOP_S)
        for name in list(self._actors):
            self._kill(name)
        for group in self._groups.values():
            remove_placement_group(group)
        self._groups.clear()

    def _start_together(self, replicas: Sequence[ReplicaPlan], requested: float | None = None) -> None:
        starting = {}
        requested = requested or time.monotonic()
        self._place(replicas)
        for replica in replicas:
            placed = time.monotonic()
            self._actors[replica.name] = self._actor(replica)
            starting[self._actors[replica.name].start.remote()] = replica
        deadlines = {r.name: time.monotonic() + self._limit(r) for r in replicas}
        while starting:
            done, _ = ray.wait(list(starting), timeout=1.0)
            for ref in done:
                replica = starting.pop(ref)
                report = self._started(replica.name, ref)
                self.reports[replica.name] = report.since_request(placed - requested, time.monotonic() - requested)
            for replica in starting.values():
                self._watch(replica.name, deadlines[replica.name])

    def _limit(self, replica: ReplicaPlan) -> float:
        return replica.spec.start_timeout_s + self._cache.wait_s + _MARGIN_S

    def _place(self, replicas: Sequence[ReplicaPlan]) -> None:
        """All places are asked for before the first one is waited for: Ray finds them side by side."""
        new = [replica for replica in replicas if replica.name not in self._groups]
        for replica in new:
            group = placement_group([dict(b) for b in replica.bundles], strategy=replica.strategy)
            self._groups[replica.name] = group
        for replica in new:
            self._wait_for_place(replica)

    def _wait_for_place(self, replica: ReplicaPlan) -> None:
        if not self._groups[replica.name].wait(self._placement_timeout_s):
            free = {k: v for k, v in ray.available_resources().items() if k in ("CPU", "GPU")}
            bundles = [dict(b) for b in replica.bundles]
            raise PlacementError(
                f"{replica.name}: no room for {bundles} ({replica.strategy}) within {self._placement_timeout_s:g} s; "
                f"free in the cluster: {free}.",
                hint="Lower replicas, or add nodes.",
                replica=replica.name,
                bundles=bundles,
            )

    def _nodes(self, replicas: Sequence[ReplicaPlan]) -> set[str]:
        """Where they are placed."""
        tables = [placement_group_table(self._groups[r.name]) for r in replicas]
        return {node for table in tables for node in table["bundles_to_node_id"].values()}

    def _actor(self, replica: ReplicaPlan) -> Any:
        one_node = len(replica.bundles) == 1  # else vLLM's Ray executor puts its workers into the bundles
        bundle = replica.bundles[0] if one_node else {}
        strategy = PlacementGroupSchedulingStrategy(
            self._groups[replica.name],
            placement_group_bundle_index=0,
            placement_group_capture_child_tasks=not one_node,
        )
        options: dict[str, Any] = {
            "num_cpus": bundle.get("CPU", 0),
            "num_gpus": bundle.get("GPU", 0),
            "max_concurrency": 1000,
        }
        if replica.spec.preload:
            options["runtime_env"] = {"py_executable": zygote.py_executable(sys.executable, fork_context.MODULE)}
        actor = ray.remote(Replica).options(scheduling_strategy=strategy, **options)
        return actor.remote(replica, self._cache)

    def _watch(self, name: str, deadline: float) -> None:
        with suppress(GetTimeoutError, RayActorError, RayTaskError):  # the start itself tells what is wrong
            self._progress(name, ray.get(self._actors[name].phase.remote(), timeout=5.0))
        if time.monotonic() > deadline:
            self._kill(name)
            raise ReplicaError(f"{name}: no answer from its start in time; it was killed.", replica=name, phase="start")

    def _started(self, name: str, ref: Any) -> StartReport:
        report = self._result(name, ref, phase="start")
        if isinstance(report, OrchestratorError):
            raise report
        self._progress(name, "ready")
        return report  # type: ignore[no-any-return]

    def _ask(self, name: str, prompt: str, sampling: Sampling) -> Any:
        return self._actors[name].generate.remote(prompt, sampling)

    def _result(self, name: str, ref: Any, phase: str = "generate") -> Any:
        """A call's value, or the typed error that stands for what went wrong."""
        try:
            return ray.get(ref)
        except RayTaskError as error:
            cause = error.cause
            if isinstance(cause, OrchestratorError):
                return cause
            return ReplicaError(f"{name}: {type(cause).__name__}: {cause}", replica=name, phase=phase)
        except RayActorError as error:
            lines = " ".join(str(error).split())
            return ReplicaError(f"{name}: its process died. {lines[:300]}", replica=name, phase=phase)

    def _kill(self, name: str) -> None:
        ray.kill(self._actors.pop(name), no_restart=True)
