"""One simulated run of the graph cache: clusters, replicas and faults by a seed, and what has to be true of it.

The registry, the client and the store are the product's own. What is the world's is put in the place of what they
import: Ray, time, threads, the storage's file system, and a node's folder of installed bundles.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from orchestrator.graph_cache import bundle, client, entry, registry, store
from orchestrator.graph_cache.client import AOT_FOLDER, GraphCacheClient
from orchestrator.graph_cache.key import digest
from orchestrator.graph_cache.restore_result import Outcome, Receipt
from orchestrator.graph_cache.settings import CacheSettings
from orchestrator.timeline import EngineFacts
from tests.simulation.storage import Bucket, Disk, LocalFiles
from tests.simulation.world import Actor, Broken, Clock, Process, Ray, Threading, World

LEASE_S, WAIT_S, GRACE_S = 10.0, 200.0, 120.0
LIMITS = bundle.Limits(1 << 20, 100)
FACTORS = [{"model": "a"}, {"model": "b"}]
KEYS = [digest(factors) for factors in FACTORS]
QUIET = {"lost": 0.0, "twice": 0.0, "late": 0.0}


def require(condition: object, what: str) -> None:
    if not condition:
        raise Broken(what)


class Graphs:
    """What replicas compile: each its own, made once for all runs, as folders take most of the time."""

    NAMES = (*(f"r{number}" for number in range(6)), "last0", "last1")

    def __init__(self, folder: Path) -> None:
        self.folder, self.key_file = folder, str(folder / "key")
        signing, known = bundle.signing_key(self.key_file), {"key": "", "factors": {}, "created": 0.0, "publisher": ""}
        self.authentic: set[bytes] = set()
        for name in (*self.NAMES, "evil"):
            graphs = folder / name / AOT_FOLDER / "x"
            graphs.mkdir(parents=True)
            (graphs / "model").write_text(f"graphs of {name}")
            data = bundle.pack(folder / name, [graphs], signing, known).tobytes()
            if name != "evil":
                self.authentic.add(bytes(bundle.verify(memoryview(data), signing, "", LIMITS)[1]))


class Marks:
    """A replica's event log, which nobody reads."""

    def mark(self, *_: object, **__: object) -> None:
        pass


class Cluster:
    """A registry that is restarted, and what was seen of it."""

    def __init__(self, run: Run, number: int) -> None:
        self.run, self.number, self.lives = run, number, 0
        self.actor = Actor(run.world, run.outside, run.faults)
        self.actor.answered = self.saw
        self.actor.disturbed = self.disturbed
        self.copies: dict[tuple[int, str], bytes] = {}  # by node
        self.leaders: dict[tuple[str, int], str] = {}
        self.led: dict[str, int] = defaultdict(int)
        self.told: set[tuple[str, int, str]] = set()
        self.missed: dict[tuple[str, str], int] = defaultdict(int)  # renewals in a row, by key and leader
        self.start()

    def start(self) -> None:
        """A process for the registry; the first one, or the next."""
        self.lives += 1
        process = Process(self.run.world, f"registry-{self.number}-{self.lives}")
        self.actor.process, self.actor.methods = process, None
        self.leaders, self.told = {}, set()
        self.led = defaultdict(int)
        restarted = self.lives > 1

        def make() -> None:
            self.actor.methods = registry.Registry("sim", LEASE_S, WAIT_S, self.run.max_bytes, restarted)

        process.thread(make)

    def restart(self) -> None:
        assert self.actor.process is not None
        self.actor.process.kill()
        self.run.world.at(self.run.world.now + self.run.world.random.uniform(0.1, 3.0), self.run.outside, self.start)

    def in_memory_alone(self) -> list[str]:
        """Keys of which the store has no copy, for want of room."""
        found = self.actor.methods._entries.items() if self.actor.methods else []
        return [key for key, entry in found if entry.header and not entry.header.get("durable")]

    def disturbed(self, name: str, words: tuple[Any, ...]) -> None:
        """A message was lost, or is late: which of them may cost a compile?"""
        key = words[0]
        if name == "renew":
            self.missed[key, words[2]] += 1
            if self.missed[key, words[2]] > 2:
                self.run.forgive(key)
        elif name in ("acquire", "replace"):
            self.run.forgive(key)
        elif name == "publish":  # it holds the lead meanwhile, and each who waits may wait too long
            self.run.forgive(*[key] * len(self.run.replicas))

    def saw(self, name: str, words: tuple[Any, ...], result: Any) -> None:
        """An answer of the registry, on its way."""
        key = words[0] if words else ""
        if name == "renew":
            self.missed[key, words[2]] = 0
        if name == "acquire" and result["outcome"] == "lead":
            self._leads(key, result["generation"], words[2])
        elif name == "replace" and result:
            self._leads(key, result, words[2])
        elif name == "publish" and result and (key, *words[1:3]) not in self.told:
            generation, who = words[1:3]
            self.told.add((key, generation, who))
            require(self.led[key] <= generation, f"{who} published {generation} while {self.led[key]} was led")
            require(self.leaders.setdefault((key, generation), who) == who, f"{who} published another's generation")
            found = self.actor.methods._entries.get(key)
            durable = found is not None and found.published_by == (who, generation) and found.header.get("durable")
            if durable and found.header["bundle"] not in self.run.disk.evicted:
                self.run.durable[key] = max(self.run.durable[key], generation)

    def _leads(self, key: str, generation: int, who: str) -> None:
        other = self.leaders.setdefault((key, generation), who)
        require(other == who, f"{other} and {who} lead generation {generation}")
        self.led[key] = max(self.led[key], generation)

    def check(self) -> None:
        if self.actor.methods is not None:
            held = self.actor.methods.held_bytes()
            require(held <= self.run.max_bytes, f"{held} bytes are held, of {self.run.max_bytes}")

    def check_end(self) -> None:
        for process, name in self.actor.open.values():
            require(not process.alive, f"a call of {name} is never answered")
        for key, found in self.actor.methods._entries.items():
            turns = found.turns
            require(turns._running or turns._free._value > 0, f"a turn of {key[:4]} is never given back")


class Copies:
    """A node's folder of installed bundles: what is installed is loaded, so it has to be authentic."""

    run: Run

    def __init__(self, folder: str, max_bytes: int) -> None:
        self.copies = self.run.nodes[folder]

    def link(self, name: str, root: Path, fetch: Any, limits: bundle.Limits) -> bool:
        fetched = name not in self.copies
        if fetched:
            self.copies[name] = bytes(fetch())
        require(self.copies[name] in self.run.graphs.authentic, "a replica loads what is not authentic")
        return fetched


@dataclass(frozen=True)
class Replica:
    """One that runs, with a way to start it again."""

    process: Process
    name: str
    key: str
    again: Callable[[], None]


class Run:
    """A seed's run. `calm` runs have no faults but deaths, stops and repeated messages: little is forgiven there."""

    def __init__(self, seed: int, graphs: Graphs) -> None:
        self.graphs, self.world = graphs, World(seed)
        draw = self.world.random
        self.calm = draw.random() < 0.5
        self.outside = Process(self.world, "outside")
        self.faults = dict(QUIET, twice=draw.choice([0.0, 0.2]))
        if not self.calm:
            self.faults |= {"lost": draw.choice([0.0, 0.05]), "late": draw.choice([0.0, 0.1])}
        slow = draw.choice([0.002, 0.02, 0.2] if self.calm else [0.002, 0.2, 2.0, 5.0])
        lag = 0.0 if self.calm else draw.choice([0.0, 0.0, 5.0])
        self.disk = Disk(self.world, slow, lag)
        self.disk.forget = self._forget
        self.disk.refused = lambda path: self.forgive(path.split("/")[1])
        self.files = draw.choice([LocalFiles, Bucket])
        self.max_bytes = draw.choice([1, 1, 13_000, 26_000, 1 << 30])
        self.turns_from = draw.choice([0, 1 << 20])
        self.durable: dict[str, int] = defaultdict(int)  # the newest generation that was said to be durable
        self.evictions: dict[str, int] = defaultdict(int)
        self.compiles: dict[str, int] = defaultdict(int)
        self.forgiven: dict[str, int] = defaultdict(int)  # compiles for which there is a reason, besides the first
        self.nodes: dict[str, dict[str, bytes]] = defaultdict(dict)
        self.tampered = False
        self.receipts: dict[str, Receipt | None] = {}
        self.compiling: set[str] = set()  # replicas between their compile's begin and the end of their publish
        self.replicas: list[Replica] = []

    def play(self) -> None:
        """From the first start to the end of the last, with checks all along.

        Raises:
            Broken: something is not as it has to be.
        """
        world, draw = self.world, self.world.random
        with self._in_place():
            clusters = [Cluster(self, number) for number in range(1 if self.calm else draw.choice([1, 2, 2]))]
            world.checks = [cluster.check for cluster in clusters]
            keys = draw.choice([1, 1, 2])
            for number in range(draw.randint(2, 6)):
                self._replica(draw.choice(clusters), f"r{number}", draw.randrange(keys), draw.uniform(0, 60))
            for _ in range(draw.randint(0, 5)):
                when, fault = draw.uniform(0, 70), draw.choice(self._faults())
                world.at(when, self.outside, fault, draw.choice(clusters))
            for _ in range(draw.randint(0, 6)):
                self._reader(KEYS[draw.randrange(keys)], draw.uniform(0, 150))
            world.run()
            world.closed, world.now = False, world.now + self.disk.lag + 1
            self._end(clusters, keys)

    def forgive(self, *keys: str) -> None:
        """Something happened that may cost one more compile of each of these keys."""
        for key in keys:
            self.forgiven[key] += 1

    def _end(self, clusters: list[Cluster], keys: int) -> None:
        """When all is quiet: everyone was answered, and what was published is there for those who come later."""
        for name, receipt in self.receipts.items():
            require(receipt is not None, f"{name} is never answered")
        for cluster in clusters:
            cluster.check_end()
        for key in KEYS[:keys]:
            self._reader(key, 0.0, always=True)
        last = Cluster(self, len(clusters))
        last.actor.faults = QUIET
        durable = {key for key in KEYS[:keys] if self.durable[key]}
        for number in range(keys):
            self._replica(last, f"last{number}", number, 1.0)
        self.world.run()
        for number, key in enumerate(KEYS[:keys]):
            receipt = self.receipts[f"last{number}"]
            require(receipt is not None, "the last replica is never answered")
            assert receipt is not None
            if key in durable and not self.tampered:
                require(receipt.restored or receipt.outcome is Outcome.unused, f"lost: {receipt}")
        for key in KEYS[:keys]:
            # clusters of one store do not wait for each other's compiles
            allowed = len(clusters) * (1 + self.evictions[key]) + self.forgiven[key]
            require(self.compiles[key] <= allowed, f"{self.compiles[key]} compiles, of {allowed} at most")

    def _faults(self) -> list[Any]:
        calm = [self._kill_registry, self._kill_registry, self._kill_replica, self._kill_replica, self._stop_replica]
        return calm if self.calm else [*calm, self._fill, self._evict, self._damage, self._forge]

    def _replica(self, cluster: Cluster, name: str, number: int, when: float) -> None:
        """A replica's start: restore, load or compile, publish."""
        draw, process = self.world.random, Process(self.world, name)
        self.receipts[name] = None
        again = lambda: self._replica(cluster, name, number, draw.uniform(0.1, 20.0))  # noqa: E731
        self.replicas.append(Replica(process, name, KEYS[number], again))
        key_file, root = self.graphs.key_file, self.graphs.folder / name
        node = f"{cluster.number}-{draw.randrange(2)}"
        settings = CacheSettings(cluster.actor, "sim", key_file, LIMITS, WAIT_S, LEASE_S, node, 1 << 20)
        factors, key = FACTORS[number], KEYS[number]

        def start() -> None:
            replica = GraphCacheClient(settings, name, Marks())  # type: ignore[arg-type]
            receipt = replica.restore(factors, root)
            require(self.tampered or receipt.outcome is not Outcome.refused, f"refused: {receipt.reason}")
            require(not self.calm or receipt.outcome is not Outcome.failed, f"failed: {receipt.reason}")
            useless = receipt.restored and draw.random() < 0.2
            facts = EngineFacts(loaded=1)
            if useless or not receipt.restored:
                if useless or receipt.outcome is Outcome.refused:
                    self.forgive(key)
                self.compiles[key] += 1
                self.compiling.add(name)
                self.world.sleep(draw.uniform(0.5, 30.0))
                facts = EngineFacts(compiled=1, saved=["model"])
                if draw.random() < 0.1:
                    self.forgive(key)
                    replica.abandon(receipt)
                    self.receipts[name] = receipt
                    return
            self.receipts[name] = replica.publish(receipt, facts, root)
            self.compiling.discard(name)

        process.thread(start, when)

    def _reader(self, key: str, when: float, always: bool = False) -> None:
        """Somebody who looks into the store, as `orchestrator cache verify` does."""

        def read() -> None:
            for _ in range(1 if self.disk.lag else 4):
                look()
                self.world.sleep(self.world.random.uniform(0.0, 20.0))

        def look() -> None:
            durable, evictions = self.durable[key], self.evictions[key]
            found = store.Store("sim").load(key)
            if not durable or self.evictions[key] != evictions or (self.disk.lag and not always):
                return
            require(found is not None, f"generation {durable} is durable, and nothing is found")
            assert found is not None
            require(
                found.header["generation"] >= durable, f"{found.header['generation']} is found, {durable} is durable"
            )

        Process(self.world, f"reader-{when}").thread(read, when)

    def _kill_registry(self, cluster: Cluster) -> None:
        often = self.calm and cluster.lives > Actor.RETRIES  # Ray gives a call up
        if cluster.actor.process is not None and cluster.actor.process.alive and not often:
            if self.disk.lag:  # the next one may not see yet what lies there
                self.forgive(*KEYS)
            self.forgive(*cluster.in_memory_alone())
            cluster.restart()

    def _someone(self) -> Replica | None:
        alive = [found for found in self.replicas if found.process.alive and self.receipts[found.name] is None]
        return self.world.random.choice(alive) if alive else None

    def _kill_replica(self, _: Cluster) -> None:
        if (found := self._someone()) is not None:
            found.process.kill()
            del self.receipts[found.name]
            if found.name in self.compiling:
                self.compiling.discard(found.name)
                self.forgive(found.key)
            if self.world.random.random() < 0.5:
                found.again()

    def _stop_replica(self, _: Cluster) -> None:
        if (found := self._someone()) is not None:
            found.process.stopped_until = self.world.now + self.world.random.uniform(1.0, 3 * LEASE_S)
            self.forgive(found.key)

    def _fill(self, _: Cluster) -> None:
        self.disk.full_until = self.world.now + self.world.random.uniform(1.0, 60.0)

    def _evict(self, cluster: Cluster) -> None:
        key, by_registry = KEYS[0], self.world.random.random() < 0.5

        def evict() -> None:
            if by_registry:
                cluster.actor.evict.remote(key)
            else:
                store.Store("sim").delete(key)

        Process(self.world, "evicts").thread(evict)

    def _forget(self, key: str) -> None:
        self.evictions[key] += 1
        self.durable[key] = 0

    def _objects(self) -> list[str]:
        return [path for path in self.disk.objects if path.endswith(".bundle") and self.disk.there(path)]

    def _damage(self, _: Cluster) -> None:
        self.tampered = True
        for path in self._objects():
            found = self.disk.objects[path]
            middle = self.world.random.randrange(len(found.data))
            found.data = found.data[:middle] + bytes([found.data[middle] ^ 1]) + found.data[middle + 1 :]

    def _forge(self, _: Cluster) -> None:
        self.tampered = True
        root = self.graphs.folder / "evil"
        known = {"key": KEYS[0], "factors": {}, "created": 0.0, "publisher": "evil"}
        data = bundle.pack(root, [root / AOT_FOLDER], b"another key, of 32 bytes or more", known).tobytes()
        self.disk.put(f"root/{KEYS[0]}/{self.world.random.randint(1, 5)}-0123456789abcdef.bundle", data)

    @contextmanager
    def _in_place(self) -> Iterator[None]:
        world, draw = self.world, self.world.random
        ray = Ray(world)
        copies = type("NodeCopies", (Copies,), {"run": self})
        secrets = mock.Mock(token_hex=lambda size: f"{draw.getrandbits(8 * size):0{2 * size}x}")
        patches: list[tuple[Any, dict[str, Any]]] = [
            (registry, {"time": Clock(world)}),
            (entry, {"time": Clock(world), "ray": ray}),
            (store, {"open_files": lambda _: (self.files(self.disk), "root"), "GRACE_S": GRACE_S, "secrets": secrets}),
            (
                client,
                {
                    "time": Clock(world),
                    "ray": ray,
                    "threading": Threading(world),
                    "NodeCopies": copies,
                    "secrets": secrets,
                    "_TURNS_FROM": self.turns_from,
                },
            ),
        ]
        with ExitStack() as stack:
            for module, names in patches:
                stack.enter_context(mock.patch.multiple(module, **names))
            yield


def play(seed: int, graphs: Graphs) -> object:
    """A seed's run; returns what two runs of it have to have in common.

    Raises:
        AssertionError: something is not as it has to be; the message begins with the seed.
    """
    run = Run(seed, graphs)
    try:
        run.play()
    except Broken as error:
        raise AssertionError(f"seed {seed}: {error}") from error
    finally:
        run.world.end()
    return run.world.steps, run.world.now, run.world.random.random()
