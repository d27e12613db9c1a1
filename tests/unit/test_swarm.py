"""Who fetches which piece of a model from whom, in made-up clusters where nodes come, die and lie."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.bench.simulator.swarm_model import Network, travel
from orchestrator.weights.members import Holders
from orchestrator.weights.swarm import Errand, Swarm

PATIENCE = 50.0


@dataclass
class World:
    """Nodes with a number of streams each, which ask, fetch and tell; each errand takes a time of its own."""

    pieces: int
    nodes: int
    seed: int
    readers: int = 4
    streams: int = 2
    small: int = 1
    faults: float = 0.0  # of fetches that fail, or bring what is wrong
    deaths: int = 0  # of nodes, in the middle
    now: float = 0.0
    reads: list[int] = field(default_factory=list)
    done_at: dict[str, float] = field(default_factory=dict)
    most_given: int = 0

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)
        self.swarm = Swarm(self.pieces, self.small, self.readers, self.streams, PATIENCE, lambda: self.now)
        self.alive = {f"n{i}": set() for i in range(self.nodes)}
        self.running: list[tuple[float, int, str, Errand]] = []
        for node in self.alive:
            self.swarm.join(node, {})

    def run(self) -> None:
        doomed = self.chance.sample(sorted(self.alive), self.deaths)
        number = 0
        for _ in range(200_000):
            if all(len(has) == self.pieces for has in self.alive.values()):
                return
            for node in self.chance.sample(sorted(self.alive), len(self.alive)):
                while sum(r[2] == node for r in self.running) < self.streams and (errand := self.swarm.next(node)):
                    number += 1
                    took = self.chance.uniform(1, 3) if errand.source else self.chance.uniform(3, 6)
                    self.running.append((self.now + took, number, node, errand))
                    self.reads += [] if errand.source else [errand.piece]
            assert sum(not e.source for _, _, _, e in self.running) <= self.readers + self.deaths
            given = [sum(e.source == n for _, _, _, e in self.running) for n in self.alive]
            self.most_given = max(self.most_given, *given)
            if not self.running:
                self.now += PATIENCE + 1
                continue
            self.running.sort()
            self.now, _, node, errand = self.running.pop(0)
            if node not in self.alive:
                continue
            if doomed and sum(map(len, self.alive.values())) > self.pieces * self.nodes / 3:
                del self.alive[doomed.pop()]  # without a word
                if node not in self.alive:
                    continue
            self._end(node, errand)
        pytest.fail("it does not end")

    def _end(self, node: str, errand: Errand) -> None:
        if errand.source and errand.source not in self.alive:
            self.swarm.failed(node, errand.piece, errand.source, gone=True)
        elif self.chance.random() < self.faults:
            self.swarm.failed(node, errand.piece, errand.source, gone=False)
            if errand.source:
                self.alive[errand.source].discard(errand.piece)
        elif self.swarm.got(node, errand.piece, f"digest {errand.piece}"):
            self.alive[node].add(errand.piece)
            if len(self.alive[node]) == self.pieces:
                self.done_at[node] = self.now


@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 12))
def test_each_piece_is_read_once_from_the_origin(seed: int, pieces: int, nodes: int) -> None:
    world = World(pieces, nodes, seed, small=min(1, pieces))
    world.run()
    assert sorted(world.reads) == list(range(pieces))
    assert world.most_given <= world.streams


@given(st.integers(0, 10**6), st.integers(1, 30), st.integers(2, 8), st.data())
def test_nodes_that_die_and_pieces_that_fail_leave_the_others_whole(
    seed: int, pieces: int, nodes: int, data: st.DataObject
) -> None:
    world = World(pieces, nodes, seed, small=1, faults=0.1, deaths=data.draw(st.integers(0, nodes - 1)))
    world.run()
    assert len(world.alive) >= 1


def test_the_last_node_is_done_soon_after_the_first() -> None:
    world = World(200, 8, 3, readers=8, streams=4)
    world.run()
    assert max(world.done_at.values()) <= 2 * min(world.done_at.values())


def test_small_files_come_first() -> None:
    swarm = Swarm(10, 3, 8, 2, PATIENCE, lambda: 0.0)
    swarm.join("a", {})
    assert [swarm.next("a").piece for _ in range(3)] == [0, 1, 2]


def test_a_piece_that_is_not_the_others_is_refused() -> None:
    swarm = Swarm(2, 0, 8, 2, PATIENCE, lambda: 0.0)
    assert swarm.join("a", {0: "right", 1: "right"}) == []
    assert swarm.join("b", {0: "wrong"}) == [0]
    errand = swarm.next("b")
    assert (errand.source, errand.digest) == ("a", "right")
    assert not swarm.got("b", errand.piece, "wrong")
    assert swarm.got("b", errand.piece, "right")


def test_it_is_told_when_nobody_can_give_a_piece() -> None:
    now = [0.0]
    swarm = Swarm(2, 0, 8, 2, PATIENCE, lambda: now[0])
    swarm.join("a", {0: "x"})
    swarm.join("b", {})
    for _ in range(2):  # neither reaches the origin
        assert not swarm.stuck()
        node = "a" if _ else "b"
        errand = swarm.next(node)
        assert errand.source == ""
        swarm.failed(node, errand.piece, "", gone=True)
    assert swarm.next("b") == Errand(0, "a", "x")  # what a node has is still given
    swarm.got("b", 0, "x")
    assert swarm.stuck()
    assert swarm.next("b") is None
    swarm.join("c", {1: "y"})
    assert not swarm.stuck()
    assert swarm.next("b") == Errand(1, "c", "y")


def test_a_node_that_is_not_heard_of_reads_nothing() -> None:
    now = [0.0]
    swarm = Swarm(1, 0, 8, 2, PATIENCE, lambda: now[0])
    swarm.join("dead", {})
    swarm.join("b", {})
    swarm.failed("b", 0, "", gone=True)
    assert not swarm.stuck()
    now[0] = PATIENCE + 1
    assert swarm.stuck()


def test_an_errand_that_takes_long_is_not_lost_while_it_is_heard_of() -> None:
    now = [0.0]
    swarm = Swarm(1, 0, 8, 2, PATIENCE, lambda: now[0])
    swarm.join("slow", {})
    swarm.join("b", {})
    assert swarm.next("slow") == Errand(0, "", "")
    for _ in range(3):
        now[0] += 0.9 * PATIENCE
        swarm.goes_on("slow", 0)
        assert swarm.next("b") is None
    now[0] += 1.1 * PATIENCE
    assert swarm.next("b") == Errand(0, "", "")
    swarm.goes_on("slow", 0)  # too late: it changes nothing
    assert swarm.got("slow", 0, "x")


def test_a_decision_takes_no_longer_in_a_large_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by the clock: by how many nodes are looked at."""
    looked = []
    some = Holders.some
    monkeypatch.setattr(Holders, "some", lambda *words: looked.append(len(found := some(*words))) or found)
    swarm = Swarm(50, 0, 8, 2, PATIENCE, lambda: 0.0)
    for number in range(1000):
        swarm.join(f"n{number}", dict.fromkeys(range(50), "x") if number else {})
    for _ in range(50):
        errand = swarm.next("n0")
        swarm.got("n0", errand.piece, "x")
    assert swarm.complete("n0")
    assert len(looked) == 50
    assert max(looked) <= 16


@pytest.mark.parametrize(
    ("nodes", "question_s", "at_most"), [(1, 0.0, 1.2), (8, 0.0, 1.2), (40, 0.0, 1.3), (40, 0.01, 5.0)]
)
def test_a_simulated_cluster_needs_little_more_than_its_network_must(
    nodes: int, question_s: float, at_most: float
) -> None:
    network = Network(node_bytes_s=100.0, origin_bytes_s=400.0, question_s=question_s)
    found = travel(nodes, 64, 10, 4, 16, network)
    least = 64 * 10 / 100.0
    assert found.read == 64
    assert least <= found.first_s <= found.last_s <= at_most * least
    assert found.last_s >= question_s * nodes * 64  # questions are answered one after the other
    assert nodes * 64 <= found.questions <= 3 * nodes * 64
