"""What goes wrong with a cluster's graph cache, and what users then see: the replica always comes up."""

from __future__ import annotations

import errno
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import ray

from orchestrator.fleet.fleet import Fleet
from orchestrator.fleet.plan import ReplicaPlan
from orchestrator.graph_cache import bundle, registry_actor
from orchestrator.graph_cache.restore_result import Outcome
from orchestrator.graph_cache.settings import CacheSettings
from orchestrator.graph_cache.store import Store
from tests.waiting import HANG_S, wait_for


def bundle_file(cache: CacheSettings) -> Path:
    (file,) = Path(cache.store).glob("*/*.bundle")
    return file


def restart(cache: CacheSettings) -> None:
    """Kill the registry, so that what it holds in memory is gone; Ray starts it again."""
    ray.kill(cache.registry, no_restart=False)


def forget_node_copies(cache: CacheSettings) -> None:
    subprocess.run(["rm", "-rf", cache.node_folder], check=True)


def flipped(data: bytes) -> bytes:
    middle = len(data) - len(data) // 3
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


class Canary:
    """Unpickling it leaves a file behind."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.file,))


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "half": lambda data: data[: len(data) // 2],
    "one bit": flipped,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_bundle_is_refused_and_replaced(damage: str, make_fleet, cache) -> None:
    with make_fleet(replicas=1) as fleet:
        fleet.start()
    file = bundle_file(cache)
    file.write_bytes(DAMAGE[damage](file.read_bytes()))
    restart(cache)
    forget_node_copies(cache)
    with make_fleet(replicas=3) as fleet:
        found = [r.receipt for r in fleet.start()]
    assert [r.outcome for r in found] == [Outcome.refused, Outcome.hit, Outcome.hit]
    assert found[0].published
    assert "refused" in found[0].reason


def test_a_canary_by_another_key_never_runs(make_fleet, cache, tmp_path: Path) -> None:
    """The right compile key, the right digests, a pickle inside that acts: but not this cluster's signature."""
    with make_fleet(replicas=1) as fleet:
        (report,) = fleet.start()
    root, canary = tmp_path / "evil", tmp_path / "canary"
    model = root / "torch_compile_cache" / "torch_aot_compile" / "x" / "rank_0_0" / "model"
    model.parent.mkdir(parents=True)
    model.write_bytes(pickle.dumps(Canary(canary)))
    known = {"key": report.receipt.key, "factors": {}, "created": 0.0, "publisher": "evil"}
    data = bundle.pack(root, [root / "torch_compile_cache"], b"another key, of 32 bytes or more", known)
    generation = ray.get(cache.registry.replace.remote(report.receipt.key, 1, "evil"))
    header = vars(bundle.manifest_of(memoryview(data)))
    assert ray.get(cache.registry.publish.remote(report.receipt.key, generation, "evil", header, data))
    with make_fleet(replicas=2) as fleet:
        found = [r.receipt for r in fleet.start()]
    assert [r.outcome for r in found] == [Outcome.refused, Outcome.hit]
    assert "signature" in found[0].reason
    assert not canary.exists()


def test_a_publisher_killed_while_it_writes_changes_nothing(make_fleet, cache) -> None:
    with make_fleet(replicas=1) as fleet:
        (report,) = fleet.start()
    script = f"""
import os, signal
from orchestrator.graph_cache.store import Store
class Dies:
    def __getattr__(self, name):
        return getattr(files, name)
    def move(self, *_):
        os.kill(os.getpid(), signal.SIGKILL)
store = Store({cache.store!r})
files, store._fs = store._fs, Dies()
store.save({report.receipt.key!r}, 9, b"half published")
"""
    done = subprocess.run([sys.executable, "-c", script], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(list(Path(cache.store).glob("*/*.tmp"))) == 1
    restart(cache)
    forget_node_copies(cache)
    with make_fleet(replicas=1) as fleet:
        assert fleet.start()[0].receipt.outcome is Outcome.hit


def leader(cache: CacheSettings) -> str:
    """The replica that compiles now, by the registry's word."""

    def ask(actor: registry_actor.Registry) -> str:
        return next((entry.leader for entry in actor._entries.values()), "")

    found: list[str] = []

    def leads() -> bool:
        found[:] = [ray.get(cache.registry.__ray_call__.remote(ask)).partition("/")[0]]
        return bool(found[0])

    wait_for(leads, "nobody leads", pause_s=0.05)
    return found[0]


def pid_of(fleet: Fleet, name: str) -> int:
    return ray.get(fleet._actors[name].__ray_call__.remote(lambda _: os.getpid()))


def end_lease(cache: CacheSettings, who: str) -> None:
    """As if a leader had been silent for the length of its lease, at any speed of this machine."""

    def end(actor: registry_actor.Registry) -> bool:
        led = [entry for entry in actor._entries.values() if entry.leader.startswith(who)]
        for entry in led:
            entry.lease_until = time.monotonic() - 1
            entry.changed.set()
        return not led

    # again and again: who waits in the registry may not yet have begun to when it is told first
    wait_for(lambda: ray.get(cache.registry.__ray_call__.remote(end)))


class Starting(threading.Thread):
    """A start of some of a fleet's replicas, in the background.

    Attributes:
        error: what it ended with.
    """

    def __init__(self, fleet: Fleet, replicas: Sequence[ReplicaPlan]) -> None:
        super().__init__(daemon=True)
        self.error: Exception | None = None
        self._fleet, self._replicas = fleet, replicas
        self.start()

    def run(self) -> None:
        try:
            self._fleet._start_together(self._replicas)
        except Exception as error:
            self.error = error

    def end(self) -> None:
        self.join(HANG_S)
        assert not self.is_alive()


@pytest.mark.parametrize("stopped", [False, True], ids=["killed", "stopped, then resumed"])
def test_another_takes_over_from_a_leader(stopped: bool, make_fleet, cache) -> None:
    with make_fleet(replicas=3, fake_compile_s=4) as fleet:
        first, *others = (slow_only(replica, "replica-0") for replica in fleet.plan.replicas)
        leading = Starting(fleet, [first])
        assert leader(cache) == "replica-0"
        pid = pid_of(fleet, "replica-0")
        os.kill(pid, signal.SIGSTOP if stopped else signal.SIGKILL)
        waiting = Starting(fleet, others)
        wait_for(lambda: all(asks(fleet, replica.name) for replica in others))
        assert leader(cache) == "replica-0"  # silent, and believed until its lease ends
        end_lease(cache, "replica-0")
        waiting.end()  # another has compiled and published
        assert waiting.error is None
        if stopped:
            os.kill(pid, signal.SIGCONT)
        leading.end()
        receipts = {name: report.receipt for name, report in fleet.reports.items()}
        if stopped:
            assert leading.error is None
            assert len(receipts) == 3
            late = receipts["replica-0"]
            assert (late.outcome, late.published) == (Outcome.compiled, False)
            assert late.reason == "another replica took over the key meanwhile"
        else:
            assert "its process died" in str(leading.error)
            receipts["replica-0"] = fleet.restart("replica-0").receipt
            assert receipts["replica-0"].outcome is Outcome.hit
        assert [r.generation for r in receipts.values() if r.published] == [2]
        found = sorted(receipts[replica.name].outcome.value for replica in others)
        assert found in (["compiled", "hit"], ["compiled", "waited"])


def slow_only(replica: ReplicaPlan, name: str) -> ReplicaPlan:
    """The replica's plan; all but the named one compile at once."""
    if replica.name == name:
        return replica
    args = {**replica.spec.args, "fake_compile_s": 0.1}
    return replace(replica, spec=replace(replica.spec, args=args))


def asks(fleet: Fleet, name: str) -> bool:
    """Has a replica come as far as its question to the registry?"""
    events = Path(next(r for r in fleet.plan.replicas if r.name == name).spec.events_file)
    return events.is_file() and '"plan"' in events.read_text()


def test_a_registry_killed_while_a_leader_compiles_loses_nothing(make_fleet, cache) -> None:
    with make_fleet(replicas=2, fake_compile_s=2) as fleet:
        first, other = fleet.plan.replicas
        leading = Starting(fleet, [first])
        assert leader(cache) == "replica-0"
        restart(cache)
        leading.end()
        Starting(fleet, [other]).end()
        found = [report.receipt for report in fleet.reports.values()]
    assert [r.outcome for r in found] == [Outcome.compiled, Outcome.hit]
    assert found[0].published


def test_an_object_store_without_room_is_served_from_the_durable_store(make_fleet, cache, tmp_path: Path) -> None:
    small = registry_actor.connect(f"small-{tmp_path.name}", cache.store, HANG_S, HANG_S, 1)
    settings = replace(cache, registry=small)
    with make_fleet(replicas=1, settings=settings) as fleet:
        assert fleet.start()[0].receipt.published
    forget_node_copies(cache)
    with make_fleet(replicas=2, settings=settings) as fleet:
        found = [r.receipt for r in fleet.start()]
    assert [(r.outcome, r.source) for r in found] == [(Outcome.hit, "store"), (Outcome.hit, "node")]
    ray.kill(small)


@pytest.mark.parametrize("folder", ["/dev/full/x", "/proc/x"], ids=["no folder can be made", "read-only"])
def test_a_node_folder_that_cannot_be_written_costs_only_the_sharing(folder: str, make_fleet, cache) -> None:
    with make_fleet(replicas=2, settings=replace(cache, node_folder=folder)) as fleet:
        found = [r.receipt for r in fleet.start()]
    assert [(r.outcome, r.source) for r in found] == [(Outcome.compiled, ""), (Outcome.hit, "memory")]


def test_a_full_disk_under_the_durable_store_costs_only_the_copy(make_fleet, cache, tmp_path: Path) -> None:
    """Every write of the registry's store fails as on a full disk; memory serves what was compiled."""
    handle = registry_actor.connect(f"full-{tmp_path.name}", cache.store, HANG_S, HANG_S, 64 << 20)

    def fill(actor: registry_actor.Registry) -> None:
        def write(path: str, data: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

        actor._store._write = write

    ray.get(handle.__ray_call__.remote(fill))
    with make_fleet(replicas=2, settings=replace(cache, registry=handle)) as fleet:
        found = [r.receipt for r in fleet.start()]
    assert [r.outcome for r in found] == [Outcome.compiled, Outcome.hit]
    assert not list(Store(cache.store).entries())
    ray.kill(handle)


def test_two_drivers_make_one_registry(local_ray: None, tmp_path: Path) -> None:
    @ray.remote(num_cpus=1)
    def driver() -> str:
        handle = registry_actor.connect(f"race-{tmp_path.name}", str(tmp_path), HANG_S, HANG_S, 1 << 20)
        ray.get(handle.held_bytes.remote())
        return str(handle._actor_id.hex())

    assert len(set(ray.get([driver.remote() for _ in range(4)]))) == 1
    ray.kill(*registry_actor.running(f"race-{tmp_path.name}"))
