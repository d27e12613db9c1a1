"""Replicas' actors: made where replicas are placed, and watched together until they are up."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from orchestrator import zygote
from orchestrator.engine.start_report import StartReport
from orchestrator.engine.vllm import fork_context
from orchestrator.errors import OrchestratorError, ReplicaError
from orchestrator.fleet import call
from orchestrator.fleet.plan import ReplicaPlan
from orchestrator.fleet.replica import Replica
from orchestrator.graph_cache.settings import CacheSettings
from orchestrator.progress import Say
from orchestrator.weights.settings import Weights

_LOOK_S = 1.0  # between two looks at those that start
_MARGIN_S = 240.0  # for what surrounds an engine's own deadline: imports, fetching graphs, first token, publishing


@dataclass(frozen=True)
class Starting:
    """A replica that starts. Times are of the driver's monotonic clock.

    Attributes:
        name: the replica's.
        actor: its handle.
        report: the reference of its report.
        requested: when the start was asked for.
        placed: when it had its room, and could be made.
        deadline: when it has to be up.
        ahead_s: seconds before it was made in which its place compiled graphs.
    """

    name: str
    actor: Any
    report: Any
    requested: float
    placed: float
    deadline: float
    ahead_s: float = 0.0


class Creation:
    """Makes the actors of a fleet's replicas.

    Args:
        cache: the graph cache's settings.
        progress: told about once a second which phase each starting replica ended last.
        weights: the model, if it travels from node to node.
    """

    def __init__(self, cache: CacheSettings, progress: Say, weights: Weights | None = None) -> None:
        self._cache, self._weights = cache, weights
        self._progress = progress

    def begin(
        self, replica: ReplicaPlan, group: Any, requested: float, *, ahead_s: float = 0.0, call: str = "start"
    ) -> Starting:
        """Make a replica's actor in its placement group, which has its room, and let it start, or do another `call`."""
        placed = time.monotonic()
        actor = self._actor(replica, group).remote(replica, self._cache, self._weights)
        deadline = placed + replica.spec.start_timeout_s + self._cache.wait_s + _MARGIN_S
        if self._weights is not None:  # who knows how long they take; the engine's own start has its deadline
            deadline = float("inf")
        return Starting(replica.name, actor, getattr(actor, call).remote(), requested, placed, deadline, ahead_s)

    def watch(self, starts: Sequence[Starting]) -> Iterator[tuple[str, StartReport]]:
        """Look at starts together, again and again, until all are up.

        Yields:
            Each replica's name and report, as they come.

        Raises:
            EngineStartError: an engine did not come up.
            ReplicaError: a replica's process died, or had no answer in time and was killed.
        """
        running = {start.report: start for start in starts}
        questions: dict[Any, Starting] = {}
        while running:
            # A replica that has not answered yet is not asked twice: it may hang, and nobody waits for it.
            asked = {start.name for start in questions.values()}
            questions |= {s.actor.phase.remote(): s for s in running.values() if s.name not in asked}
            ray.wait(list(running), timeout=_LOOK_S)
            arrived = time.monotonic()
            errors = []
            for ref in _there(running):
                start = running.pop(ref)
                report = call.outcome(ref, start.name, "start")
                if isinstance(report, OrchestratorError):
                    errors.append(report)
                    continue
                self._progress(start.name, "ready")
                placement_s = start.placed - start.requested - start.ahead_s
                yield start.name, report.since_request(placement_s, arrived - start.requested, start.ahead_s)
            questions = {ref: start for ref, start in questions.items() if start.report in running}
            for ref in _there(questions):
                with suppress(RayError):  # the start itself tells what is wrong
                    self._progress(questions.pop(ref).name, ray.get(ref))
            errors += [_killed(start) for start in running.values() if time.monotonic() > start.deadline]
            if errors:
                raise errors[0]

    def _actor(self, replica: ReplicaPlan, group: Any) -> Any:
        one_node = len(replica.bundles) == 1  # else vLLM's Ray executor puts its workers into the bundles
        bundle = replica.bundles[0] if one_node else {}
        strategy = PlacementGroupSchedulingStrategy(
            group,
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
        return ray.remote(Replica).options(scheduling_strategy=strategy, **options)


def _there(references: Iterable[Any]) -> list[Any]:
    """Those whose value has arrived. All are looked at in one call, which does not wait."""
    known = list(references)
    there, _ = ray.wait(known, num_returns=len(known), timeout=0)
    return list(there)


def _killed(start: Starting) -> ReplicaError:
    ray.kill(start.actor, no_restart=True)
    text = f"{start.name}: no answer from its start in time; it was killed."
    return ReplicaError(text, replica=start.name, phase="start")
