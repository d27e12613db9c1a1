"""Requests, spread over the replicas that live."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from orchestrator.engine import Sampling
from orchestrator.errors import EngineDeadError, OrchestratorError, ReplicaCallError, ReplicaError
from orchestrator.fleet import call
from orchestrator.fleet.replica import Answer

_LOOK_S = 1.0  # the longest that a dead replica's request waits for the next one


@dataclass(frozen=True)
class _Request:
    """One prompt's request of one replica."""

    index: int
    replica: str
    actor: Any


class Dispatch:
    """Asks replicas. One that is found dead is not asked again, until it is added anew."""

    def __init__(self) -> None:
        self._living: dict[str, Any] = {}  # whose turn is next comes first

    def add(self, name: str, actor: Any) -> None:
        """A replica is up."""
        self._living[name] = actor

    def remove(self, name: str) -> None:
        """A replica is not to be asked any more."""
        self._living.pop(name, None)

    def ask(self, prompts: Sequence[str], sampling: Sampling) -> list[Answer | OrchestratorError]:
        """Spread prompts over the replicas. A request whose replica dies goes on to the next that lives.

        Returns:
            For each prompt its answer, or the error that it ended with; none is lost.
        """
        nobody = ReplicaError("No replica is up.", replica="", phase="generate")
        answers: list[Answer | OrchestratorError] = [nobody] * len(prompts)
        running: dict[Any, _Request] = {}

        def send(index: int) -> bool:
            if not self._living:
                return False
            name = next(iter(self._living))
            actor = self._living[name] = self._living.pop(name)
            running[actor.generate.remote(prompts[index], sampling)] = _Request(index, name, actor)
            return True

        for index in range(len(prompts)):
            send(index)
        while running:
            done, _ = ray.wait(list(running), num_returns=len(running), timeout=_LOOK_S)
            for ref in done:
                request = running.pop(ref)
                answer = self._answer(ref, request.replica, request.actor)
                # each turn of this loop ends a request or finds a replica dead, so that it ends
                if not (_is_dead(answer) and send(request.index)):
                    answers[request.index] = answer
        return answers

    def ask_one(self, name: str, prompts: Iterable[str], sampling: Sampling) -> list[Answer]:
        """Ask one replica all prompts at once; raises the first error."""
        if name not in self._living:
            raise ReplicaError(f"{name}: it is not up.", replica=name, phase="generate")
        actor = self._living[name]
        answers = []
        for ref in [actor.generate.remote(prompt, sampling) for prompt in prompts]:
            answer = self._answer(ref, name, actor)
            if isinstance(answer, OrchestratorError):
                raise answer
            answers.append(answer)
        return answers

    def _answer(self, reference: Any, name: str, actor: Any) -> Answer | OrchestratorError:
        answer: Answer | OrchestratorError = call.outcome(reference, name, "generate")
        if _is_dead(answer) and self._living.get(name) is actor:  # and not the one that has replaced it
            del self._living[name]
        return answer


def _is_dead(answer: Answer | OrchestratorError) -> bool:
    """Does an answer say that its replica is dead? A request that is refused says nothing about the replica."""
    return isinstance(answer, (ReplicaError, EngineDeadError)) and not isinstance(answer, ReplicaCallError)
