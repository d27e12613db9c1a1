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
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import ray

from orchestrator.graph_cache import bundle, registry
from orchestrator.graph_cache.client import CacheSettings
from orchestrator.graph_cache.receipt import Outcome
from orchestrator.graph_cache.store import Store


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


def test_a_publisher_killed_between_bundle_and_pointer_changes_nothing(make_fleet, cache) -> None:
    with make_fleet(replicas=1) as fleet:
        (report,) = fleet.start()
    script = f"""
import os, signal
from orchestrator.graph_cache.store import Store
write = Store._write
def die(self, path, data):
    if path.endswith("latest.json"):
        os.kill(os.getpid(), signal.SIGKILL)
    write(self, path, data)
Store._write = die
Store({cache.store!r}).save({report.receipt.key!r}, 9, b"half published", {{}})
"""
    done = subprocess.run([sys.executable, "-c", script], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(list(Path(cache.store).glob("*/*.bundle"))) == 2
    restart(cache)
    forget_node_copies(cache)
    with make_fleet(replicas=1) as fleet:
        assert fleet.start()[0].receipt.outcome is Outcome.hit


def leading_pid(fleet) -> int:
    """The process of the replica that compiles now."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        for actor in list(fleet._actors.values()):
            pid, leads = ray.get(actor.__ray_call__.remote(lambda replica: (os.getpid(), replica._cache._leads)))
            if leads:
                return pid
        time.sleep(0.05)
    raise AssertionError("nobody leads")


@pytest.mark.parametrize("stopped", [False, True], ids=["killed", "stopped, then resumed"])
def test_another_takes_over_from_a_leader(stopped: bool, make_fleet, cache) -> None:
    with make_fleet(replicas=3, fake_compile_s=1.5) as fleet:
        failed: list[Exception] = []

        def start() -> None:
            try:
                fleet._start_together(fleet.plan.replicas)
            except Exception as error:
                failed.append(error)

        starting = threading.Thread(target=start)
        starting.start()
        pid = leading_pid(fleet)
        os.kill(pid, signal.SIGSTOP if stopped else signal.SIGKILL)
        if stopped:
            time.sleep(3.5)  # past the lease of 1 s: another compiles and publishes meanwhile
            os.kill(pid, signal.SIGCONT)
        starting.join(60)
        assert not starting.is_alive()
        receipts = {name: report.receipt for name, report in fleet.reports.items()}
        if stopped:
            assert not failed
            assert len(receipts) == 3
            late = [r for r in receipts.values() if r.outcome is Outcome.compiled and not r.published]
            assert [r.reason for r in late] == ["another replica took over the key meanwhile"]
        else:
            assert "its process died" in str(failed[0])
            names = [n for n in fleet._actors if n not in receipts]
            for name in names:
                receipts[name] = fleet.restart(name).receipt  # the dead one, and those whose reports went unread
        generations = [r.generation for r in receipts.values() if r.published]
        assert generations in ([2], [])
        assert len([r for r in receipts.values() if r.outcome in (Outcome.hit, Outcome.waited)]) >= 1


def test_a_registry_killed_while_a_leader_compiles_loses_nothing(make_fleet, cache) -> None:
    with make_fleet(replicas=2, fake_compile_s=3) as fleet:
        starting = threading.Thread(target=fleet.start)
        starting.start()
        leading_pid(fleet)
        restart(cache)
        starting.join(60)
        found = [report.receipt for report in fleet.reports.values()]
    assert [r.outcome for r in found] == [Outcome.compiled, Outcome.hit]
    assert found[0].published


def test_an_object_store_without_room_is_served_from_the_durable_store(make_fleet, cache, tmp_path: Path) -> None:
    small = registry.connect(f"small-{tmp_path.name}", cache.store, 1.0, 60.0, 1)
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
    handle = registry.connect(f"full-{tmp_path.name}", cache.store, 1.0, 60.0, 64 << 20)

    def fill(actor: registry.Registry) -> None:
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
        handle = registry.connect(f"race-{tmp_path.name}", str(tmp_path), 1.0, 60.0, 1 << 20)
        ray.get(handle.held_bytes.remote())
        return str(handle._actor_id.hex())

    assert len(set(ray.get([driver.remote() for _ in range(4)]))) == 1
    ray.kill(ray.get_actor(registry.ACTOR_NAME, f"race-{tmp_path.name}"))
