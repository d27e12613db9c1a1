"""The fleet on a real Ray with fake engines: sharing, faults, and nothing left behind."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray

from orchestrator.engine import Sampling
from orchestrator.engine.vllm import reaper
from orchestrator.errors import EngineStartError, OrchestratorError, PlacementError
from orchestrator.fleet.replica import Answer
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
        fleet._start_together(fleet.plan.replicas)  # all cold, none first
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


def test_requests_fail_plainly_when_nobody_is_left(make_fleet) -> None:
    with make_fleet(replicas=1) as fleet:
        (report,) = fleet.start()
        os.kill(report.pid, signal.SIGKILL)
        (answer,) = fleet.ask(["x"], Sampling(max_tokens=4))
        assert isinstance(answer, OrchestratorError)
        assert answer.replica == "replica-0"


def test_no_room_says_which_bundle(make_fleet) -> None:
    with make_fleet(replicas=1, place=1.0) as fleet:
        bundles = ({"CPU": 64.0},)
        fleet.plan = replace(fleet.plan, replicas=(replace(fleet.plan.replicas[0], bundles=bundles),))
        with pytest.raises(PlacementError) as caught:
            fleet.start()
        assert caught.value.bundles == [{"CPU": 64.0}]


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
