"""Placement, creation and dispatch over a Ray that is a clock: its time passes only where the fleet waits."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayActorError, RayTaskError

from orchestrator.engine import Sampling
from orchestrator.engine.start_report import StartReport
from orchestrator.errors import EngineDeadError, EngineStartError, PlacementError, ReplicaCallError, ReplicaError
from orchestrator.fleet import call, creation, dispatch, placement
from orchestrator.fleet.creation import Creation, Starting
from orchestrator.fleet.dispatch import Dispatch
from orchestrator.fleet.placement import Placement
from orchestrator.graph_cache.restore_result import Outcome, Receipt
from orchestrator.timeline import EngineFacts

NEVER = math.inf
ONE_TOKEN = Sampling(max_tokens=1)


@dataclass(eq=False)
class Reference:
    """A value that arrives at a moment of the clock."""

    at: float
    value: Any = None


class FakeRay:
    """`ray.wait` is what time passes in."""

    def __init__(self) -> None:
        self.now = 0.0
        self.killed: list[Any] = []

    def monotonic(self) -> float:
        return self.now

    def wait(
        self, references: list[Reference], num_returns: int = 1, timeout: float = NEVER
    ) -> tuple[list[Reference], list[Reference]]:
        if not references:
            return [], []
        enough = sorted(reference.at for reference in references)[num_returns - 1]
        self.now = max(self.now, min(enough, self.now + timeout))
        assert self.now < NEVER, "it waits for ever"
        there = [reference for reference in references if reference.at <= self.now][:num_returns]
        return there, [reference for reference in references if reference not in there]

    def get(self, reference: Reference) -> Any:
        assert reference.at <= self.now, "it waits outside of ray.wait"
        if isinstance(reference.value, Exception):
            raise reference.value
        return reference.value

    def kill(self, actor: Any, *, no_restart: bool) -> None:
        self.killed.append(actor)

    def available_resources(self) -> dict[str, float]:
        return {"CPU": 2.0}


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    fake = FakeRay()
    for module in (call, creation, dispatch, placement):
        monkeypatch.setattr(module, "ray", fake)
    monkeypatch.setattr(creation, "time", fake)
    return fake


class Method:
    """An actor's method; its last answer is repeated."""

    def __init__(self, *answers: Reference) -> None:
        self.calls = 0
        self._answers = answers

    def remote(self, *arguments: Any) -> Reference:
        self.calls += 1
        return replace(self._answers[min(self.calls, len(self._answers)) - 1])


def start(name: str, report: Reference, deadline: float = NEVER, phase: Reference | None = None) -> Starting:
    actor = SimpleNamespace(phase=Method(phase or Reference(NEVER)))
    return Starting(name, actor, report, requested=0.0, placed=0.0, deadline=deadline)


def report(name: str, seconds: float) -> StartReport:
    return StartReport(name, seconds, Receipt(Outcome.hit), EngineFacts(), (), 1)


def creator(told: list[tuple[str, str]]) -> Creation:
    return Creation(SimpleNamespace(wait_s=0.0), lambda name, phase: told.append((name, phase)))


def test_one_that_is_late_is_seen_while_sixty_three_others_hang(ray: FakeRay) -> None:
    starts = [start(f"replica-{i}", Reference(NEVER)) for i in range(63)]
    late = start("replica-63", Reference(NEVER), deadline=10.0)
    with pytest.raises(ReplicaError) as caught:
        list(creator([]).watch([*starts, late]))
    assert caught.value.replica == "replica-63"
    assert ray.killed == [late.actor]
    assert ray.now == 11.0  # of this clock: the first look after the deadline
    assert {s.actor.phase.calls for s in [*starts, late]} == {1}


def test_all_that_are_late_are_killed(ray: FakeRay) -> None:
    starts = [start(f"replica-{i}", Reference(NEVER), deadline=5.0) for i in range(3)]
    with pytest.raises(ReplicaError, match="replica-0"):
        list(creator([]).watch(starts))
    assert ray.killed == [s.actor for s in starts]


def test_phases_are_told_while_others_hang_and_what_is_up_tells_none(ray: FakeRay) -> None:
    told: list[tuple[str, str]] = []
    slow = start("replica-0", Reference(3.5, report("replica-0", 2.0)))
    quick = start("replica-1", Reference(1.5, report("replica-1", 1.0)), phase=Reference(1.0, "import"))
    found = list(creator(told).watch([slow, quick]))
    assert [(name, done.replica) for name, done in found] == [("replica-1", "replica-1"), ("replica-0", "replica-0")]
    # the driver's clock has the whole, the replica's own the rest
    assert [done.first_token_s for _, done in found] == [1.5, 3.5]
    assert [[p.name for p in done.phases] for _, done in found] == [["placement", "process"]] * 2
    assert told == [("replica-1", "import"), ("replica-1", "ready"), ("replica-0", "ready")]


def test_reports_that_came_with_an_error_are_not_lost(ray: FakeRay) -> None:
    failed = RayTaskError("start", "", EngineStartError("out of memory", replica="replica-0", cause="oom"))
    starts = [start("replica-0", Reference(1.0, failed)), start("replica-1", Reference(1.0, report("replica-1", 0.5)))]
    found = []
    with pytest.raises(EngineStartError, match="out of memory"):
        found.extend(creator([]).watch(starts))
    assert [(name, done.replica) for name, done in found] == [("replica-1", "replica-1")]


def test_places_are_waited_for_under_one_deadline(ray: FakeRay, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each would be there within the time after the one before it."""
    groups = iter(SimpleNamespace(ready=lambda at=9.0 * i: Reference(at)) for i in range(64))
    monkeypatch.setattr(placement, "placement_group", lambda bundles, strategy: next(groups))
    replicas = [SimpleNamespace(name=f"replica-{i}", bundles=({"CPU": float(i)},), strategy="PACK") for i in range(64)]
    with pytest.raises(PlacementError) as caught:
        Placement(10.0).place(replicas)
    assert ray.now == 10.0
    assert (caught.value.replica, caught.value.bundles) == ("replica-2", [{"CPU": 2.0}])
    assert caught.value.message.endswith(", replica-62, replica-63.")


def dead() -> Reference:
    return Reference(1.0, RayActorError())


def answering(*answers: Reference) -> Any:
    return SimpleNamespace(generate=Method(*answers))


def test_a_request_goes_on_until_one_answers_and_the_dead_are_not_asked_again(ray: FakeRay) -> None:
    lost = Reference(1.0, RayTaskError("generate", "", EngineDeadError("dead", replica="replica-1")))
    actors = [answering(dead()), answering(lost), answering(Reference(1.0, "an answer"))]
    spread = Dispatch()
    for i, actor in enumerate(actors):
        spread.add(f"replica-{i}", actor)
    assert spread.ask(["a"], ONE_TOKEN) == ["an answer"]
    assert spread.ask(["b", "c"], ONE_TOKEN) == ["an answer"] * 2
    assert [actor.generate.calls for actor in actors] == [1, 1, 3]
    spread.add("replica-0", back := answering(Reference(1.0, "it is back")))
    assert "it is back" in spread.ask(["d", "e"], ONE_TOKEN)
    assert back.generate.calls == 1


def test_a_dead_replicas_request_does_not_wait_for_a_long_one(ray: FakeRay) -> None:
    spread = Dispatch()
    spread.add("replica-0", answering(dead()))
    spread.add("replica-1", last := answering(Reference(1000.0, "long"), Reference(5.0, "short")))
    sent: list[float] = []
    answer = last.generate.remote
    last.generate.remote = lambda *arguments: sent.append(ray.now) or answer(*arguments)
    assert spread.ask(["a", "b"], ONE_TOKEN) == ["short", "long"]
    assert sent == [0.0, 1.0]


def test_what_one_replica_refuses_is_not_asked_of_others(ray: FakeRay) -> None:
    """Else one bad prompt would pass for the death of every replica."""
    refused = Reference(1.0, RayTaskError("generate", "", ValueError("too long")))
    spread = Dispatch()
    spread.add("replica-0", first := answering(refused, Reference(1.0, "an answer")))
    spread.add("replica-1", answering(Reference(1.0, "an answer")))
    error, answer = spread.ask(["too long", "b"], ONE_TOKEN)
    assert (type(error), answer) == (ReplicaCallError, "an answer")
    assert spread.ask(["c"], ONE_TOKEN) == ["an answer"]
    assert first.generate.calls == 2


def test_with_nobody_left_each_prompt_has_its_error(ray: FakeRay) -> None:
    spread = Dispatch()
    spread.add("replica-0", answering(dead()))
    spread.add("replica-1", answering(dead()))
    errors = spread.ask(["a", "b", "c"], ONE_TOKEN)
    assert [type(error) for error in errors] == [ReplicaError] * 3
    assert "No replica is up." in str(spread.ask(["d"], ONE_TOKEN)[0])
    with pytest.raises(ReplicaError, match="not up"):
        spread.ask_one("replica-0", ["e"], ONE_TOKEN)


def test_the_late_news_of_a_death_is_not_its_successors(ray: FakeRay) -> None:
    spread = Dispatch()
    spread.add("replica-0", old := answering())

    def dies(*arguments: Any) -> Reference:
        spread.add("replica-0", answering(Reference(1.0, "an answer")))  # replaced meanwhile
        return dead()

    old.generate.remote = dies
    assert spread.ask(["a"], ONE_TOKEN) == ["an answer"]
