"""The configuration's way through a run: models, cluster, plan, fleet, start; no step goes back up."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from orchestrator import models
from orchestrator.cluster import connect
from orchestrator.cluster.shape import ClusterShape, Node
from orchestrator.errors import ConfigError
from orchestrator.runs import run
from tests.unit.test_layers import LAYERS, ORDER, imports

FILE = Path(run.__file__)


def test_what_a_run_imports_is_below_it() -> None:
    layers = {name: i for i, layer in enumerate(LAYERS) for name in layer}
    found = {parts[1] for name in imports(FILE) if (parts := name.split("."))[0] == "orchestrator" and len(parts) > 1}
    assert {"config", "models", "cluster", "graph_cache", "engine", "fleet"} <= found
    assert all(layers[name] <= layers["runs"] for name in found & set(ORDER))


def test_each_step_is_taken_once_and_in_order(make_app, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []

    @contextmanager
    def connected(cluster, say, check):
        taken.append("cluster")
        check(ClusterShape((Node(8),)))
        yield ClusterShape((Node(8),))

    class Fleet:
        def __init__(self, plan, *rest) -> None:
            taken.append("fleet")
            self.plan = SimpleNamespace(replicas=())

        def __enter__(self) -> Fleet:
            return self

        def __exit__(self, *_) -> None: ...

        def start(self) -> list:
            taken.append("start")
            return []

    plain = run.make_plan
    monkeypatch.setattr(models, "resolve", lambda *_: taken.append("models") or "/model")
    monkeypatch.setattr(connect, "connected", connected)
    monkeypatch.setattr(run, "make_plan", lambda *given, **named: taken.append("plan") or plain(*given, **named))
    monkeypatch.setattr(run, "cache_settings", lambda *_, **__: None)
    monkeypatch.setattr(run, "Fleet", Fleet)
    run.execute(make_app("engine=fake", "model=tiny_llama"), lambda who, what: None)
    assert taken == ["models", "cluster", "plan", "fleet", "start"]


def test_a_cluster_without_room_is_told_before_ray_starts(make_app, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "resolve", lambda *_: "/model")
    monkeypatch.setattr(connect.ray_start, "start", lambda *_, **__: pytest.fail("Ray was started"))
    app = make_app("engine=fake", "model=tiny_llama", "replicas=4", "cluster.num_cpus=2")
    with pytest.raises(ConfigError, match="4 replicas"):
        run.execute(app, lambda who, what: None)
