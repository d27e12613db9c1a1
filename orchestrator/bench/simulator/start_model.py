"""A cluster's start as discrete events: what waits for what when many replicas of one model start together.

Resources are queues: Ray's control plane (placement), the registry's one thread and its bound on open calls, each
node's link to the network, each node's lock on installed graphs, each machine's cores. Objects spread as Ray's do: a
node pulls from any node that has them by then.
"""

from __future__ import annotations

import random
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

import simpy

from orchestrator.graph_cache.transfer_slots import PER_COPY

Steps = Generator[Any, Any, None]
_SLICE_S = 0.1  # processes share cores in turns


@dataclass(frozen=True)
class Constants:
    """What single steps take, in seconds, as measured.

    Attributes:
        place_s: of Ray's control plane, to place one replica.
        process_s: of a core, from a placed replica to its question to the registry.
        ask_s: of the registry's thread, to answer one replica.
        publish_s: of the leader, to pack and hand over a MiB.
        transfer_s: of a node's link, for a MiB.
        install_s: of a core, to verify and install a MiB, on a node that has no copy.
        link_s: of a core, to use a node's copy.
        compile_s: from the registry's word to compiled graphs.
        load_s: from installed graphs to the first token.
    """

    place_s: float
    process_s: float
    ask_s: float
    publish_s: float
    transfer_s: float
    install_s: float
    link_s: float
    compile_s: float
    load_s: float


@dataclass(frozen=True)
class Scale:
    """A cluster, and what starts in it.

    Attributes:
        cores: of each machine.
        nodes_per_machine: Ray's nodes; more than one only in tests.
        cold: nobody has compiled yet.
        calls: how many calls the registry has open at once; a replica that waits holds one. None: any number.
        turns: nodes fetch graphs in turns, as many at once as have them.
        boot_s: until a node is there.
        free: resources that cost nothing, of "placement", "registry", "network", "install": to see what they are worth.
    """

    nodes: int
    replicas: int
    artifact_mib: float
    cores: int = 16
    nodes_per_machine: int = 1
    cold: bool = False
    calls: int | None = None
    turns: bool = True
    boot_s: float = 0.0
    free: frozenset[str] = frozenset()


@dataclass
class Outcome:
    """How it went.

    Attributes:
        last_s: until every replica has given its first token.
        median_s: until half of them have.
        busy_s: for how long the registry's thread, and the busiest link, were busy.
    """

    ready: list[float] = field(default_factory=list)
    busy_s: dict[str, float] = field(default_factory=dict)

    @property
    def last_s(self) -> float:  # noqa: D102 - above
        return max(self.ready)

    @property
    def median_s(self) -> float:  # noqa: D102 - above
        return sorted(self.ready)[len(self.ready) // 2]


@dataclass
class _Node:
    cores: simpy.Resource
    link: simpy.Resource
    lock: simpy.Resource
    installed: bool = False
    sent_s: float = 0.0


class _Start:
    """One run of the model."""

    def __init__(self, constants: Constants, scale: Scale, seed: int) -> None:
        self.env = simpy.Environment()
        self.outcome = Outcome()
        self._take, self._scale, self._random = constants, scale, random.Random(seed)
        machines = [simpy.Resource(self.env, scale.cores) for _ in range(-(-scale.nodes // scale.nodes_per_machine))]
        self._nodes = [
            _Node(machines[i // scale.nodes_per_machine], simpy.Resource(self.env), simpy.Resource(self.env))
            for i in range(scale.nodes)
        ]
        self._control = simpy.Resource(self.env)
        self._thread = simpy.Resource(self.env)
        self._calls = simpy.Resource(self.env, scale.calls or scale.replicas + 1)
        self._turns = simpy.Container(self.env, init=PER_COPY)
        self._published = self.env.event()
        self._holders: list[_Node] = []  # the registry's node is the first one
        self._led = False
        self._registry_s = 0.0
        if not scale.cold:
            self._publish()
        for i in range(scale.replicas):
            self.env.process(self._replica(self._nodes[i % scale.nodes]))

    def run(self) -> Outcome:
        """Run to the end."""
        self.env.run()
        busiest = max(node.sent_s for node in self._nodes)
        self.outcome.busy_s = {"registry": self._registry_s, "busiest link": busiest}
        return self.outcome

    def _replica(self, node: _Node) -> Steps:
        take = self._take
        yield self.env.timeout(self._scale.boot_s)
        yield from self._hold(self._control, self._cost("placement", take.place_s))
        yield from self._compute(node, take.process_s)
        with self._calls.request() as call:
            yield call
            yield from self._asked(self._cost("registry", take.ask_s))
            leads = not self._led and not self._published.triggered
            self._led = True
            if not leads:
                yield self._published  # at once, where it is published already
        if leads:
            yield self.env.timeout(take.compile_s)
            self.outcome.ready.append(self.env.now)  # it serves from here on
            yield from self._compute(node, take.publish_s * self._scale.artifact_mib)
            yield from self._handed_over()
            return
        yield from self._install(node)
        yield self.env.timeout(take.load_s)
        self.outcome.ready.append(self.env.now)

    def _handed_over(self) -> Steps:
        with self._calls.request() as call:
            yield call
            yield from self._asked(self._cost("registry", self._take.ask_s))
        self._publish()

    def _publish(self) -> None:
        self._holders.append(self._nodes[0])
        self._published.succeed()

    def _install(self, node: _Node) -> Steps:
        """One replica of a node fetches and installs, under the node's lock; the others use its copy."""
        with node.lock.request() as lock:
            yield lock
            if not node.installed:
                yield from self._fetch(node)
                yield from self._compute(node, self._cost("install", self._take.install_s * self._scale.artifact_mib))
                node.installed = True
        yield from self._compute(node, self._take.link_s)

    def _fetch(self, node: _Node) -> Steps:
        seconds = self._cost("network", self._take.transfer_s * self._scale.artifact_mib)
        if node in self._holders:
            return
        if self._scale.turns:
            yield from self._asked(self._cost("registry", self._take.ask_s))
            yield self._turns.get(1)
        source = self._random.choice(self._holders)
        source.sent_s += seconds
        yield from self._hold(source.link, seconds)
        if self._scale.turns:
            self._turns.put(1 + PER_COPY)
        self._holders.append(node)

    def _asked(self, seconds: float) -> Steps:
        self._registry_s += seconds
        yield from self._hold(self._thread, seconds)

    def _compute(self, node: _Node, seconds: float) -> Steps:
        while seconds > 0:
            turn = min(seconds, _SLICE_S)
            yield from self._hold(node.cores, turn)
            seconds -= turn

    def _hold(self, resource: simpy.Resource, seconds: float) -> Steps:
        with resource.request() as turn:
            yield turn
            yield self.env.timeout(seconds)

    def _cost(self, resource: str, seconds: float) -> float:
        return 0.0 if resource in self._scale.free else seconds


def simulate(constants: Constants, scale: Scale, seed: int = 0) -> Outcome:
    """Start `scale.replicas` replicas of one model at once.

    Raises:
        ValueError: a replica can never become ready: every call of the registry's is taken by one that waits.
    """
    outcome = _Start(constants, scale, seed).run()
    if len(outcome.ready) < scale.replicas:
        raise ValueError(f"{scale.replicas - len(outcome.ready)} replicas wait for ever")
    return outcome
