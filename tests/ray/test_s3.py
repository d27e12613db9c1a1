"""The durable store on a real S3 interface over HTTP (moto's server), behind a real registry and replicas."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import ray

from orchestrator.cli import main
from orchestrator.errors import ConfigError
from orchestrator.graph_cache import registry_actor
from orchestrator.graph_cache.restore_result import Outcome
from orchestrator.graph_cache.store import Store
from tests.waiting import HANG_S


def test_a_bundle_goes_there_and_back(s3: str) -> None:
    store = Store(s3)
    data = os.urandom(1 << 20)
    assert store.load("k") is None
    store.save("k", 1, data)
    store.save("k", 2, data[::-1])
    found = Store(s3).load("k")
    assert found is not None
    assert found.data == data[::-1]
    assert [(k, h["generation"]) for k, h in store.entries()] == [("k", 2)]
    store.delete("k")
    assert list(Store(s3).entries()) == []


def test_a_bucket_that_is_not_there_is_named(s3: str) -> None:
    with pytest.raises(ConfigError, match=r"There is no bucket elsewhere\. Hint: Create it"):
        Store(s3.replace("graphs", "elsewhere").replace("allow_bucket_creation=true", "allow_bucket_creation=false"))


def test_a_later_cluster_never_compiles(s3: str, make_fleet, cache, tmp_path: Path, capsys) -> None:
    def cluster(name: str):
        handle = registry_actor.connect(f"{name}-{tmp_path.name}", s3, HANG_S, HANG_S, 64 << 20)
        settings = replace(cache, registry=handle, store=s3, node_folder=str(tmp_path / name))
        with make_fleet(replicas=2, settings=settings) as fleet:
            found = [r.receipt for r in fleet.start()]
        ray.kill(handle)
        return found

    first = cluster("first")
    assert [r.outcome for r in first] == [Outcome.compiled, Outcome.hit]
    later = cluster("later")
    assert [(r.outcome, r.source) for r in later] == [(Outcome.hit, "memory"), (Outcome.hit, "node")]
    where = ["cache", "--store", s3, "--key-file", cache.key_file]
    assert main.main([*where, "verify", first[0].key[:12]]) == 0
    assert main.main([*where, "evict", first[0].key]) == 0
    assert main.main([*where, "show", first[0].key]) == 2
    assert "authentic" in capsys.readouterr().out
