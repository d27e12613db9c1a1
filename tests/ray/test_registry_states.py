"""The registry against a small model of it: whatever happens in whatever order, one leads, and no old word counts."""

from __future__ import annotations

import asyncio
import os
import tempfile
from dataclasses import dataclass, replace
from unittest import mock

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from orchestrator.graph_cache import entry as module
from orchestrator.graph_cache.registry import Registry

LEASE, LEAD = 10.0, 100.0
WHO = st.sampled_from(["a", "b", "c"])


@dataclass
class Model:
    """What has to be true of one key."""

    leader: str = ""
    generation: int = 0
    lease_until: float = 0.0
    lead_until: float = 0.0
    published: bytes | None = None
    durable: int = 0  # the generation of what was published
    publisher: str = ""


class Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now, self.count = 1000.0, 0
        self.model, self.claims = Model(), {}  # claims: who -> the generation it was once told to lead
        self.folder = tempfile.TemporaryDirectory()
        self.patches = [
            mock.patch.object(module.time, "monotonic", self.clock),
            mock.patch.object(module.ray, "put", bytes),
        ]
        for patch in self.patches:
            patch.start()
        self.registry = self.new()

    def clock(self) -> float:
        return self.now

    def new(self) -> Registry:
        return Registry(self.folder.name, LEASE, LEAD, max_bytes=64)

    def teardown(self) -> None:
        for patch in self.patches:
            patch.stop()
        self.folder.cleanup()

    def lead(self, who: str, generation: int) -> None:
        until = {"lease_until": self.now + LEASE, "lead_until": self.now + LEAD}
        self.model = replace(self.model, leader=who, generation=generation, **until)
        self.claims[who] = generation

    def leads(self, who: str) -> bool:
        return self.model.leader == who and self.claims.get(who) == self.model.generation

    @rule(who=WHO)
    def acquire(self, who: str) -> None:
        answer = asyncio.run(self.registry.acquire("k", {}, who, -1.0))
        model = self.model
        if not model.leader and model.published is not None:
            assert answer["outcome"] == "hit"
            assert answer["ref"] == [model.published]
            assert answer["generation"] == model.generation
        elif model.leader == who and self.now <= min(model.lease_until, model.lead_until):
            assert (answer["outcome"], answer["generation"]) == ("lead", model.generation)  # it asks again
            self.model.lease_until = self.now + LEASE
        elif model.leader and self.now <= min(model.lease_until, model.lead_until):
            assert (answer["outcome"], answer["leader"]) == ("timeout", model.leader)
        else:
            assert answer["outcome"] == "lead"
            assert answer["generation"] > model.generation
            self.lead(who, answer["generation"])

    @rule(who=WHO)
    def renew(self, who: str) -> None:
        if who not in self.claims:  # nobody speaks who was not told to lead, once
            return
        allowed = self.leads(who) and self.now <= self.model.lead_until
        assert asyncio.run(self.registry.renew("k", self.claims[who], who)) == allowed
        if allowed:
            self.model.lease_until = self.now + LEASE

    @rule(who=WHO)
    def release(self, who: str) -> None:
        if who not in self.claims:  # nobody speaks who was not told to lead, once
            return
        asyncio.run(self.registry.release("k", self.claims[who], who))
        if self.leads(who):
            self.model.leader = ""

    @rule(who=WHO)
    def publish(self, who: str) -> None:
        if who not in self.claims:  # nobody speaks who was not told to lead, once
            return
        self.count += 1
        data = f"{who} {self.count}".encode()
        allowed = self.leads(who)
        again = self.model.publisher == who and self.model.durable == self.claims[who]  # its answer was lost
        assert asyncio.run(self.registry.publish("k", self.claims[who], who, {}, data)) == (allowed or again)
        if allowed:
            durable = self.model.generation
            self.model = replace(self.model, leader="", published=data, durable=durable, publisher=who)

    @precondition(lambda self: self.model.published is not None and not self.model.leader)
    @rule(who=WHO)
    def replace_entry(self, who: str) -> None:
        generation = asyncio.run(self.registry.replace("k", self.model.generation, who))
        assert generation == self.model.generation + 1
        self.lead(who, generation)

    @rule(seconds=st.sampled_from([1.0, 9.0, 11.0, 101.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: self.model.published is not None and not self.model.leader)
    @rule()
    def restart(self) -> None:
        """Between compiles: the durable store has everything (with a leader at work, see test_registry.py)."""
        self.registry = self.new()
        self.model.publisher = ""
        self.model.generation = self.model.durable  # leads that came to nothing are forgotten; names still fence them
        asyncio.run(self.registry.acquire("k", {}, "reader", -1.0))  # the next who asks loads it again

    @invariant()
    def memory_is_bounded(self) -> None:
        assert self.registry.held_bytes() <= 64


PROFILE = "ray-all" if os.environ.get("ORCHESTRATOR_TEST_ALL") == "1" else "ray-short"  # conftest.py has them
Machine.TestCase.settings = settings(settings.get_profile(PROFILE), stateful_step_count=30)
TestRegistry = Machine.TestCase
