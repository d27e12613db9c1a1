"""What is expected of a start, by the starts that were seen."""

from __future__ import annotations

import json
import math
import random
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator import models
from orchestrator.report.forecasts import foresee
from orchestrator.serve.start_history import StartHistory
from orchestrator.timeline.forecast import Forecast, Seen, Size

GIB = 2**30


def world(size: Size, compiled: bool, fresh: bool, noise: float = 0.0, seed: int = 0) -> Seen:
    """A start on a machine that is unlike the prior figures: three times as fast, but for its disk, which is slow."""
    random_ = random.Random(f"{size} {compiled} {fresh} {seed}")
    phases = {
        "engine process": 2.0 + 3.0 * fresh + 0.5 * (size.ranks - 1),
        "weights": 0.2 + 4.0 * size.weight_bytes / size.ranks / GIB,
        "inductor" if compiled else "artifact load": (4.0 + 0.1 * size.layers)
        if compiled
        else 0.2 + 0.01 * size.layers,
        "kv cache": 0.5 + 0.02 * size.layers,
    }
    return Seen(size, compiled, fresh, {name: s * random_.uniform(1 - noise, 1 + noise) for name, s in phases.items()})


SMALL = [Size(layers, int(gib * GIB), ranks) for layers, gib, ranks in [(4, 0.1, 1), (12, 0.5, 1), (24, 1.0, 2)]]
NEW = [Size(layers, int(gib * GIB), ranks) for layers, gib, ranks in product([8, 32, 64], [0.3, 2.0, 16.0], [1, 2, 4])]
KINDS = [(True, True), (True, False), (False, False)]


def test_models_that_were_never_seen_are_foretold() -> None:
    seen = [world(size, *kind, noise=0.03) for size in SMALL for kind in KINDS]
    forecast = Forecast(seen)
    told = inside = 0
    for size, (compiled, fresh) in product(NEW, KINDS):
        took = world(size, compiled, fresh, noise=0.03, seed=1).seconds
        expected = forecast.expected(size, compiled=compiled, fresh=fresh)
        told += abs(expected.seconds / took - 1) <= 0.1
        inside += expected.low <= took <= expected.high
    assert told >= 0.75 * len(NEW) * len(KINDS)
    assert inside >= 0.7 * len(NEW) * len(KINDS)


def test_what_nothing_was_seen_of_gets_rough_figures() -> None:
    small, large = (
        Forecast([]).expected(s, compiled=True, fresh=True) for s in (Size(2, 0, 1), Size(80, 140 * GIB, 1))
    )
    assert small.low < small.seconds < small.high
    assert large.seconds > 5 * small.seconds


def test_a_model_that_was_seen_is_foretold_by_its_own_last_starts() -> None:
    odd = Size(4, 0, 1)  # nothing like the others of its size
    own = [Seen(odd, False, False, {"handshake": seconds}) for seconds in (500.0, 90.0, 100.0, 100.0, 101.0, 500.0)]
    forecast = Forecast([*(world(size, *kind) for size in SMALL for kind in KINDS), *own])
    assert forecast.expected(odd, compiled=False, fresh=False).seconds == 100.0
    assert forecast.expected(odd, compiled=True, fresh=False).seconds != 100.0


def test_the_first_start_of_a_node_takes_longer() -> None:
    forecast = Forecast([world(size, *kind) for size in SMALL for kind in KINDS])
    fresh, used = (forecast.expected(NEW[0], compiled=True, fresh=it).seconds for it in (True, False))
    assert fresh - used == pytest.approx(3.0, abs=0.5)


SIZES = st.builds(Size, st.integers(1, 200), st.integers(0, 10**12), st.integers(1, 64))
STARTS = st.builds(
    Seen,
    SIZES,
    st.booleans(),
    st.booleans(),
    st.dictionaries(st.sampled_from(["weights", "inductor", "artifact load", "plan"]), st.floats(0.0, 10_000.0)),
)


@given(st.lists(STARTS, max_size=12), SIZES, st.booleans(), st.booleans())
def test_whatever_was_seen_there_is_an_answer(seen: list[Seen], size: Size, compiled: bool, fresh: bool) -> None:
    expected = Forecast(seen).expected(size, compiled=compiled, fresh=fresh)
    assert 0 <= expected.low <= expected.seconds <= expected.high
    assert math.isfinite(expected.high)


def report(replica: str, seen: Seen, node: str = "n", **more: object) -> dict:
    phases = [{"name": name, "start": 0.0, "seconds": seconds} for name, seconds in seen.phases.items()]
    return {
        "replica": replica, "model": "m", "node": node, "size": vars(seen.size), "phases": phases,
        "engine": {"compiled": int(seen.compiled)}, **more,
    }  # fmt: skip


def test_a_history_takes_each_start_once_and_knows_nodes_and_models() -> None:
    history, size = StartHistory(), SMALL[0]
    assert history.expected("m", vars(size)) is None
    first, second = world(size, True, True), world(size, False, False)
    for _ in range(3):  # replicas tell again and again
        history.add(report("m#1", first))
        history.add(report("m#2", second))
    whole = round(second.seconds, 2)
    assert history.expected("m", vars(size))["seconds"] == whole  # a model of this size was seen: its graphs are there
    assert history.expected("m", None)["seconds"] == whole
    assert history.expected("other", None) is None
    assert history.expected("m", None, restored=False, node="another")["seconds"] == round(first.seconds, 2)
    assert history.expected("m", None, restored=False, node="n")["seconds"] < first.seconds


def test_a_replica_without_a_size_teaches_nothing() -> None:
    history = StartHistory()
    history.add({**report("m#1", world(SMALL[0], True, True)), "size": None})
    assert history.expected("m", None) is None


def cell(*starts: Seen, fast: bool = True) -> dict:
    replicas = [report(f"replica-{i}", start) for i, start in enumerate(starts)]
    return {"data": {"config": {"fast_cold_start": fast}, "replicas": replicas}}


def test_a_sweep_tells_whether_its_starts_would_have_been_foreseen() -> None:
    cells = [cell(world(size, True, True), world(size, False, False)) for size in [*SMALL, *NEW[:6]]]
    cells += [cell(world(SMALL[0], True, True), fast=False), {"data": {}}]  # stock's, and one that failed
    rows: list[dict] = [{} for _ in cells]
    found = foresee(rows, cells)
    assert found is not None
    assert found["starts"] == 18
    assert found["within_10_percent"] >= 12
    assert [len(row["expected"]) for row in rows] == [2] * 9 + [0, 0]
    first = rows[0]["expected"][0]
    assert first["off"] == pytest.approx(first["seconds"] / world(SMALL[0], True, True).seconds - 1, abs=0.01)
    few: list[dict] = [{} for _ in cells[:3]]
    assert foresee(few, cells[:3]) is None
    assert few == [{}, {}, {}]


def test_what_waits_for_others_is_no_part_of_a_start() -> None:
    told = report("r", Seen(SMALL[0], False, False, {"placement": 60.0, "cache wait": 30.0, "weights": 2.0}))
    seen = Seen.of(told, fresh=False)
    assert seen is not None
    assert seen.seconds == 2.0


@pytest.mark.parametrize(
    ("config", "files", "arguments", "size"),
    [
        ({"num_hidden_layers": 5}, {"a.safetensors": 10, "b.safetensors": 20, "c.bin": 99}, {}, Size(5, 30, 1)),
        ({"n_layer": 5}, {"c.bin": 99}, {"tensor_parallel_size": 2, "pipeline_parallel_size": 2}, Size(5, 99, 4)),
        ({"text_config": {"num_hidden_layers": 7}}, {}, {}, Size(7, 0, 1)),
        ({"num_hidden_layers": 5}, {"a.safetensors": 10}, {"load_format": "dummy"}, Size(5, 0, 1)),
        ({"hidden_size": 5}, {"a.safetensors": 10}, {}, None),
        (None, {}, {}, None),
    ],
)
def test_the_size_of_a_folder(tmp_path: Path, config, files: dict[str, int], arguments: dict, size) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config))
    for name, length in files.items():
        (tmp_path / name).write_bytes(bytes(length))
    assert models.size_of(str(tmp_path), arguments) == size


def test_the_size_of_a_model_in_the_hubs_cache(tmp_path: Path, monkeypatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--org--m"
    snapshot = repository / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    (snapshot / "config.json").write_text('{"num_hidden_layers": 3}')
    (snapshot / "model.safetensors").write_bytes(bytes(8))
    assert models.size_of("org/m", {}) == Size(3, 8, 1)
    assert models.size_of("org/other", {}) is None
