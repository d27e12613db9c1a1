"""Ten thousand replicas of one key on a thousand nodes ask at once: one read of the store, and all answered soon."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from orchestrator.graph_cache import bundle
from orchestrator.graph_cache.client import GraphCacheClient
from orchestrator.graph_cache.restore_result import Outcome
from orchestrator.graph_cache.settings import CacheSettings
from orchestrator.timeline import EngineFacts
from tests.simulation import world as worlds
from tests.simulation.scenario import FACTORS, KEYS, LEASE_S, LIMITS, QUIET, Cluster, Copies, Graphs, Marks, Run
from tests.simulation.storage import Bucket
from tests.simulation.world import Process, wait_until

EACH = 10  # replicas of a node
WAIT_S, COMPILE_S = 600.0, 30.0
FETCH_S = 0.1  # one copy from node to node, on average; world.Ray has it
# a tree of a thousand nodes has ten levels, and the slowest of a level's copies takes several times the average
BOUND_S = 10 * 10 * FETCH_S + 10.0


class LockedCopies(Copies):
    """One replica of a node fetches, the others wait for it, as NodeCopies' file lock has it."""

    def link(self, name: str, root: Path, fetch: Any, limits: bundle.Limits) -> bool:
        wait = self.run.fetching.setdefault(id(self.copies), [])
        if wait or name in self.copies:
            wait_until(self.run.world, lambda: name in self.copies, wait, WAIT_S)
            return super().link(name, root, fetch, limits)
        wait.append(lambda: None)
        fetched = super().link(name, root, fetch, limits)
        for wake in wait:
            wake()
        return fetched


class Herd(Run):
    """One cluster, and all of its replicas at once."""

    def __init__(self, graphs: Graphs, replicas: int, max_bytes: int) -> None:
        super().__init__(0, graphs)
        self.replicas = replicas
        self.calm, self.faults, self.files, self.turns_from = True, QUIET, Bucket, 0
        self.max_bytes, self.disk.slow, self.disk.lag = max_bytes, 0.02, 0.0
        self.fetching: dict[int, list[Any]] = {}
        self.answered: list[float] = []
        self.outcomes: dict[Outcome, int] = dict.fromkeys(Outcome, 0)

    def start(self, cluster: Cluster) -> float:
        """Start replicas all at once; returns after how many seconds the last of them had its answer."""
        began, self.answered = self.world.now, []
        for number in range(self.replicas):
            self._one(cluster, number)
        self.world.closed = False
        self.world.run()
        assert len(self.answered) == self.replicas
        return max(self.answered) - began

    def _one(self, cluster: Cluster, number: int) -> None:
        process = Process(self.world, f"r{number}")
        node, key_file = f"{cluster.number}-{number % (self.replicas // EACH)}", self.graphs.key_file
        settings = CacheSettings(cluster.actor, "sim", key_file, LIMITS, WAIT_S, LEASE_S, node, 1 << 20)

        def live() -> None:
            replica = GraphCacheClient(settings, f"r{number}", Marks())  # type: ignore[arg-type]
            receipt = replica.restore(FACTORS[0], self.graphs.folder / "r0")
            facts = EngineFacts(loaded=1)
            if not receipt.restored:
                self.compiles[KEYS[0]] += 1
                self.world.sleep(COMPILE_S)
                facts = EngineFacts(compiled=1, saved=["model"])
            self.answered.append(self.world.now)
            self.outcomes[replica.publish(receipt, facts, self.graphs.folder / "r0").outcome] += 1

        process.thread(live)


@pytest.mark.parametrize("fits", [True, False], ids=["fits", "too-large"])
@pytest.mark.parametrize("replicas", [1000, 10_000], ids=["small", "large"])
def test_a_cold_herd_and_then_a_warm_one(replicas: int, fits: bool, graphs: Graphs) -> None:
    """Bundles that the registry's memory has no room for are read by each node once, and never by the registry."""
    herd, nodes = Herd(graphs, replicas, 1 << 30 if fits else 1), replicas // EACH
    limit = mock.patch.object(worlds, "STEPS", 100 * replicas)
    with limit, mock.patch("tests.simulation.scenario.Copies", LockedCopies), herd._in_place():
        cold = herd.start(Cluster(herd, 0))
        assert herd.compiles[KEYS[0]] == 1
        assert herd.outcomes[Outcome.compiled] == 1
        assert herd.outcomes[Outcome.waited] + herd.outcomes[Outcome.hit] == replicas - 1
        assert cold < COMPILE_S + BOUND_S
        assert len(herd.disk.loads) == (0 if fits else nodes)

        herd.disk.loads.clear()
        warm = herd.start(Cluster(herd, 1))  # a later cluster: its registry knows nothing
        assert herd.outcomes[Outcome.compiled] == 1
        assert warm < BOUND_S
        readers = {who for who in herd.disk.loads if who.startswith("registry")}
        assert (len(herd.disk.loads), len(readers)) == ((1, 1) if fits else (nodes, 0))
