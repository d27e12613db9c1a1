"""The fleet on a real Ray with fake engines: sharing, faults, and nothing left behind."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray
from ray.util.placement_group import placement_group_table

from orchestrator.engine import Sampling
from orchestrator.engine.vllm import reaper
from orchestrator.errors import EngineDeadError, EngineStartError, PlacementError, ReplicaError
from orchestrator.fleet import creation
from orchestrator.fleet.replica import Answer, Replica, StartReport
from orchestrator.graph_cache.restore_result import Outcome
from tests.waiting import wait_for


def outcomes(reports) -> list[Outcome]:
    return [r.receipt.outcome for r in reports]


def test_one_compiles_and_the_others_load(make_fleet, tmp_path: Path) -> None:
    with make_fleet(replicas=4) as fleet:
        reports = fleet.start()
        assert outcomes(reports) == [Outcome.compiled] + [Outcome.hit] * 3
        assert reports[0].receipt.published
        assert reports[1].receipt.bytes == reports[0].receipt.bytes > 0
        for report in reports:
            whole = sum(p.seconds for p in report.phases)
            assert whole == pytest.approx(report.first_token_s, rel=0.05)
        first = fleet.ask_one("replica-0", ["a", "b"], Sampling(max_tokens=3))
        assert [a.token_ids for a in first] == [
            a.token_ids for a in fleet.ask_one("replica-3", ["a", "b"], Sampling(max_tokens=3))
        ]
    assert not list((tmp_path / "scratch").glob("replica-*"))
    wait_for(lambda: ray.available_resources().get("CPU") == 8.0, "not all CPUs are given back")


def test_many_cold_at_once_compile_once(make_fleet) -> None:
    with make_fleet(replicas=8, fake_compile_s=1) as fleet:
        fleet.start(at_once=True)
        found = outcomes(fleet.reports.values())
        assert found.count(Outcome.compiled) == 1
        assert found.count(Outcome.waited) + found.count(Outcome.hit) == 7


def test_a_failing_start_has_its_root_cause_and_frees_the_key(make_fleet) -> None:
    with make_fleet(fake_fail="start") as fleet:
        with pytest.raises(EngineStartError) as caught:
            fleet.start()
        assert caught.value.cause == "RuntimeError: out of fake memory"  # and not its deadline's end
        assert caught.value.replica == "replica-0"
    with make_fleet(replicas=1) as fleet:
        assert outcomes(fleet.start()) == [Outcome.compiled]


def test_a_hanging_start_ends_at_its_deadline(make_fleet) -> None:
    with make_fleet(replicas=1, timeout=1.0, fake_hang=1) as fleet, pytest.raises(EngineStartError) as caught:
        fleet.start()
    assert "start_timeout_s=1" in caught.value.cause


@pytest.mark.parametrize("replicas", [16, 64], ids=["some", "many"])
def test_all_that_start_are_looked_at_in_one_go(
    replicas: int, make_fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No replica tells its phase before all were asked for theirs, and none is asked anew before it has told it."""
    (asked := tmp_path / "asked").mkdir()
    all_told = tmp_path / "all told"

    class Slow(Replica):  # local, so that it travels by value
        questions = 0

        async def start(self) -> StartReport:
            while not all_told.exists():
                await asyncio.sleep(0.2)
            return await super().start()

        async def phase(self) -> str:
            self.questions += 1
            question = self.questions
            (asked / self.plan.name).touch()
            while len(list(asked.iterdir())) < replicas:
                await asyncio.sleep(0.2)
            return f"question {question}"

    told: dict[str, str] = {}

    def progress(name: str, phase: str) -> None:
        told.setdefault(name, phase)
        if len(told) == replicas:
            all_told.touch()

    monkeypatch.setattr(creation, "Replica", Slow)
    with make_fleet(replicas, cpus=0.1, progress=progress) as fleet:
        assert len(fleet.start(at_once=True)) == replicas
    assert set(told.values()) == {"question 1"}


def test_a_killed_replicas_requests_are_answered_by_another(make_fleet) -> None:
    with make_fleet() as fleet:
        reports = fleet.start()
        os.kill(reports[0].pid, signal.SIGKILL)
        answers = fleet.ask([f"prompt {i}" for i in range(6)], Sampling(max_tokens=4))
        assert [type(a) for a in answers] == [Answer] * 6
        assert {a.replica for a in answers} == {"replica-1"}
        again = fleet.restart("replica-0")
        assert again.receipt.outcome is Outcome.hit
        assert fleet.ask_one("replica-0", ["x"], Sampling(max_tokens=1))
        answers = fleet.ask(["a", "b"], Sampling(max_tokens=1))
        assert {a.replica for a in answers} == {"replica-0", "replica-1"}


def test_a_request_passes_two_dead_replicas_in_a_row(make_fleet) -> None:
    with make_fleet(replicas=3) as fleet:
        reports = [fleet.start_one(replica.name) for replica in fleet.plan.replicas]
        os.kill(reports[0].pid, signal.SIGKILL)
        end_engine(fleet, "replica-1")
        (answer,) = fleet.ask(["x"], Sampling(max_tokens=4))
        assert answer.replica == "replica-2"


def end_engine(fleet, name: str) -> None:
    """The engine dies; its actor lives on."""
    ray.get(fleet._actors[name].__ray_call__.remote(lambda replica: setattr(replica._engine, "_running", False)))


def test_requests_fail_plainly_when_nobody_is_left(make_fleet) -> None:
    with make_fleet(replicas=3) as fleet:
        reports = fleet.start()
        os.kill(reports[0].pid, signal.SIGKILL)
        os.kill(reports[2].pid, signal.SIGKILL)
        end_engine(fleet, "replica-1")
        errors = fleet.ask([f"prompt {i}" for i in range(5)], Sampling(max_tokens=4))
        assert {type(error) for error in errors} <= {ReplicaError, EngineDeadError}
        assert {error.replica for error in errors} <= {"replica-0", "replica-1", "replica-2"}
        (error,) = fleet.ask(["again"], Sampling(max_tokens=4))
        assert (type(error), error.message) == (ReplicaError, "No replica is up.")
        with pytest.raises(ReplicaError, match="it is not up"):
            fleet.ask_one("replica-1", ["again"], Sampling(max_tokens=4))
        fleet.restart("replica-1")
        (answer,) = fleet.ask(["again"], Sampling(max_tokens=4))
        assert answer.replica == "replica-1"


def test_no_room_says_which_bundles_and_all_room_is_given_back(make_fleet) -> None:
    before = set(placement_group_table())
    with make_fleet(replicas=3, place=1.0) as fleet:
        first, second, third = fleet.plan.replicas
        first, third = replace(first, bundles=({"CPU": 64.0},)), replace(third, bundles=({"CPU": 32.0},))
        fleet.plan = replace(fleet.plan, replicas=(first, second, third))
        with pytest.raises(PlacementError) as caught:
            fleet.start()
    assert (caught.value.replica, caught.value.bundles) == ("replica-0", [{"CPU": 64.0}])
    assert "replica-2" in caught.value.message
    groups = {key: group for key, group in placement_group_table().items() if key not in before}
    assert len(groups) == 3
    wait_for(lambda: {placement_group_table()[key]["state"] for key in groups} == {"REMOVED"})


def test_what_was_restored_but_compiled_again_is_unused_and_replaced(make_fleet, cache) -> None:
    """The artifact is authentic and under the right key, yet the engine finds it useless."""
    with make_fleet(replicas=1) as fleet:
        (first,) = fleet.start()
    with make_fleet(replicas=3) as fleet:
        spoil(cache, first.receipt.key)
        found = fleet.start()
        assert outcomes(found) == [Outcome.unused, Outcome.hit, Outcome.hit]
        assert "not this code" in found[0].receipt.reason
        assert found[0].receipt.published
        assert found[1].receipt.generation == first.receipt.generation + 2


def spoil(cache, key: str) -> None:
    """Publish a well-signed artifact of other code over an entry."""
    from orchestrator.graph_cache import bundle

    old = ray.get(ray.get(cache.registry.acquire.remote(key, {}, "test", 1.0))["ref"][0])
    secret = bundle.signing_key(cache.key_file)
    manifest, payload = bundle.verify(memoryview(np.asarray(old).data), secret, key, cache.limits)
    root = Path(cache.key_file).parent / "spoiled"
    bundle.install(payload, root, cache.limits)
    (model,) = root.rglob("model")
    model.write_text("graph of something else")
    known = {k: v for k, v in vars(manifest).items() if k not in ("payload_sha256", "payload_bytes", "files")}
    data = bundle.pack(root, [root / "torch_compile_cache"], secret, known)
    generation = ray.get(cache.registry.replace.remote(key, 1, "test"))
    header = vars(bundle.manifest_of(memoryview(data)))
    assert ray.get(cache.registry.publish.remote(key, generation, "test", header, data))


def test_an_artifact_by_another_key_is_refused_and_replaced(make_fleet, cache, tmp_path: Path) -> None:
    with make_fleet(replicas=1) as fleet:
        fleet.start()
    (tmp_path / "signing.key").unlink()
    with make_fleet(replicas=2) as fleet:
        found = fleet.start()
        assert outcomes(found) == [Outcome.refused, Outcome.hit]
        assert "signature is not by this cluster's key" in found[0].receipt.reason


def test_a_dead_registry_costs_a_compile_not_a_replica(make_fleet, cache) -> None:
    ray.kill(cache.registry)
    with make_fleet(replicas=1) as fleet:
        (report,) = fleet.start()
        assert report.receipt.outcome is Outcome.failed
        assert report.facts.compiled == 1


@ray.remote(num_cpus=0)
class Owner:
    """An actor with a folder that only its reaper removes."""

    def own(self, folder: str) -> None:
        reaper.start_reaper(reaper.new_marker("owner", forked=False), folder)


@pytest.mark.parametrize("end", [ray.kill, lambda actor: actor.__ray_terminate__.remote()], ids=["killed", "ended"])
def test_the_reaper_outlives_a_worker_of_rays(end, local_ray: None, tmp_path: Path) -> None:
    """Ray's workers kill their children when they exit."""
    (folder := tmp_path / "folder").mkdir()
    owner = Owner.remote()
    ray.get(owner.own.remote(str(folder)))
    end(owner)
    wait_for(lambda: not folder.exists())
