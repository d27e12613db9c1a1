"""Models that travel, and a fleet that waits for them: from a bucket, in time and not."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest
from pyarrow import fs

from orchestrator.bench.origin import Origin, serving
from orchestrator.errors import ConfigError, EngineStartError, ModelError
from orchestrator.fleet.fleet import Fleet
from orchestrator.fleet.plan import make_plan
from orchestrator.graph_cache.restore_result import Outcome
from orchestrator.graph_cache.settings import CacheSettings
from orchestrator.graph_cache.store import open_files
from orchestrator.weights import listing as listings
from orchestrator.weights.settings import weights_of
from tests.ray.conftest import SHAPE
from tests.unit.test_weights_store import files, make_model
from tests.waiting import HANG_S


def test_a_bucket_is_an_origin_and_a_replica_waits_for_it(
    local_ray: None, s3: str, make_app, cache: CacheSettings, tmp_path: Path
) -> None:
    model = make_model(tmp_path / "model", {"a.safetensors": 1 << 20})
    (model / "config.json").write_text('{"num_attention_heads": 4}')
    files_there, root = open_files(s3)
    files_there.create_dir(f"{root}/m")
    fs.copy_files(str(model), f"{root}/m", destination_filesystem=files_there)
    uri = s3.replace("graphs/prefix", "graphs/prefix/m")
    words = ("engine=fake", "model=local_path", "model.name=m", f"model.id='{uri}'", "cold_start.share_weights=true")
    app = make_app(*words, f"state_dir={tmp_path}", "replicas=2", "cold_start.preload=false")
    weights = weights_of(app)
    assert weights is not None
    plan = make_plan(app, SHAPE, model=weights.path, scratch=str(tmp_path / "scratch"))
    with Fleet(plan, cache, HANG_S, weights=replace(weights, needed="it is not asked for here")) as fleet:
        first, second = fleet.start()
        assert files(Path(weights.path)) == files(model)
    came = (first.model_files["origin_bytes"], second.model_files["disk_bytes"])
    assert came == (weights.listing.bytes, weights.listing.bytes)
    assert {"model files", "model transfer"} <= {phase.name for phase in first.phases}
    assert not any("secret" in str(told) for told in (weights.path, first.as_dict(), *Path(weights.folder).iterdir()))
    with pytest.raises(ConfigError, match="divide"):
        weights_of(make_app(*words, "engine.tensor_parallel_size=3"))
    files_there.delete_file(f"{root}/m/config.json")
    with pytest.raises(ModelError, match=r"No config\.json in s3://\*\*\*@graphs"):
        weights_of(app)


def test_a_model_that_does_not_come_fails_a_start_with_its_cause(
    local_ray: None, make_app, cache: CacheSettings, tmp_path: Path
) -> None:
    model = make_model(tmp_path / "model", {"a.safetensors": 1 << 20})
    (model / "config.json").write_text("{}")
    words = ("engine=fake", "model=local_path", "model.name=m", f"model.id={model}", "cold_start.share_weights=true")
    app = make_app(*words, f"state_dir={tmp_path}", "replicas=1", "cold_start.preload=false")
    weights = weights_of(app)
    assert weights is not None
    (model / "a.safetensors").unlink()
    plan = make_plan(app, SHAPE, model=weights.path, scratch=str(tmp_path / "scratch"))
    with Fleet(plan, cache, HANG_S, weights=weights) as fleet, pytest.raises(EngineStartError) as caught:
        fleet.start()
    assert caught.value.phase == "model files"
    assert "a.safetensors" in caught.value.cause


class Gated(Origin):
    """Sends weights only once it is told to."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, 0)
        self.open = threading.Event()

    def pace(self, count: int) -> None:
        if count > 1000:
            assert self.open.wait(HANG_S)
        super().pace(count)


def test_graphs_are_compiled_while_the_weights_are_on_their_way(
    local_ray: None, make_app, cache: CacheSettings, tmp_path: Path
) -> None:
    model = make_model(tmp_path / "model", {"a.safetensors": listings.SMALL + 5000})
    (model / "config.json").write_text("{}")
    origin, said = Gated(model), []

    def progress(who: str, what: str) -> None:
        said.append((who, what))
        if (who, what) == ("compile", "ready"):
            origin.open.set()

    with serving(origin) as uri:
        words = (
            "engine=fake",
            "model=local_path",
            "model.name=m",
            f"model.id='{uri}'",
            "cold_start.share_weights=true",
        )
        app = make_app(*words, f"state_dir={tmp_path}", "replicas=2", "cold_start.preload=false")
        weights = weights_of(app)
        assert weights is not None
        plan = make_plan(app, SHAPE, model=weights.path, scratch=str(tmp_path / "scratch"))
        with Fleet(plan, cache, HANG_S, progress, weights) as fleet:
            first, second = fleet.start()
    assert [r.receipt.outcome for r in (first, second)] == [Outcome.hit, Outcome.hit]
    assert first.phases[1].name == "compile ahead"
    assert sum(phase.seconds for phase in first.phases) == pytest.approx(first.first_token_s)
    assert files(Path(weights.path)) == files(model)
    assert not list((tmp_path / "scratch").glob("*-compile"))
    again = replace(weights, needed="its weights are quantised (config.json)")
    with Fleet(plan, cache, HANG_S, progress, again) as fleet:
        said.clear()
        fleet.start()
    assert "compile" not in {who for who, _ in said}
