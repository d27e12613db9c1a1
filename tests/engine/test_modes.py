"""Layer-index KV update on real models: stock vLLM's tokens and KV-cache bytes, cold and warm."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator import models
from tests.engine import equality, references


# Unique artifacts do not depend on depth: first piece, last piece, and one for each kind of layer between.
@pytest.mark.parametrize(
    ("name", "artifacts"),
    [
        ("tiny_llama", 3),
        ("tiny_qwen3", 3),
        ("tiny_mixtral", 3),
        ("tiny_deepseek_v2", 4),
        ("tiny_gemma3", 3),
        ("tiny_zamba2", 5),
    ],
)
def test_tokens_and_kv_bytes_are_stocks_cold_and_warm(
    name: str, artifacts: int, starts, make_app, state: str, tmp_path: Path
) -> None:
    model = models.resolve(make_app(f"model={name}").model, state)
    stock = references.stock(starts, name, model, state, f"{tmp_path}/stock")
    ours = {"mode": "layer_index", "cache": f"{tmp_path}/ours"}
    cold, warm = starts(model, ours, ours)
    assert "error" not in cold, cold["error"]
    assert all(int(layer.split()[2]) > 0 for layer in stock["kv"])  # something was written
    if name not in ("tiny_gemma3", "tiny_zamba2"):  # whose kinds of layers share tensors
        assert len({layer.split()[1] for layer in stock["kv"]}) == len(stock["kv"])
    for found in (cold, warm):
        assert found["tokens"] == stock["tokens"]
        assert found["kv"] == stock["kv"]
    assert (cold["loaded"], cold["compiled"], cold["artifacts"]) == (0, 1, artifacts)
    assert (warm["loaded"], warm["compiled"]) == (1, 0)


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_deepseek_v2"])
def test_references_are_what_stock_says_today(name: str, starts, make_app, state: str, tmp_path: Path) -> None:
    model = models.resolve(make_app(f"model={name}").model, state)
    kept = references.stock(starts, name, model, state, f"{tmp_path}/kept")
    (today,) = starts(model, {"mode": "stock", "cache": f"{tmp_path}/today"})
    assert (today["tokens"], today["kv"]) == (kept["tokens"], kept["kv"])


def test_layers_that_share_a_kv_cache(starts, make_app, state: str, tmp_path: Path) -> None:
    """Gemma 3n: the last layers never update. KV bytes are `split`'s; stock's whole graph rounds elsewhere."""
    model = models.resolve(make_app("model=tiny_gemma3n").model, state)
    stock, split, cold, warm = starts(
        model,
        {"mode": "stock", "cache": f"{tmp_path}/stock"},
        *({"mode": mode, "cache": f"{tmp_path}/ours"} for mode in ("split", "layer_index", "layer_index")),
    )
    assert all(found["tokens"] == stock["tokens"] for found in (split, cold, warm))
    assert cold["kv"] == warm["kv"] == split["kv"]
    assert (cold["loaded"], cold["compiled"], warm["loaded"], warm["compiled"]) == (0, 1, 1, 0)


def test_tensor_parallel_ranks_say_and_store_what_stocks_do(starts, make_app, state: str, tmp_path: Path) -> None:
    model = models.resolve(make_app("model=tiny_llama").model, state)
    ours = {"mode": "layer_index", "cache": f"{tmp_path}/ours", "ranks": 2}
    stock = {"mode": "stock", "cache": f"{tmp_path}/stock", "ranks": 2}
    stock, cold, warm = starts(model, stock, ours, ours, VLLM_CPU_OMP_THREADS_BIND="0|1")
    assert len(stock["kv"]) == 2 * 4
    assert len({layer.split()[1] for layer in stock["kv"]}) == 2 * 4
    for found in (cold, warm):
        assert found["tokens"] == stock["tokens"]
        assert found["kv"] == stock["kv"]


def test_modes_do_not_share_a_cache_and_the_guard_raises(starts, make_app, state: str, tmp_path: Path) -> None:
    model = models.resolve(make_app("model=tiny_llama").model, state)
    cache = f"{tmp_path}/one"
    kinds = ["layer_index", "layer_name", "split", "inline"]
    *modes, wrong = starts(
        model,
        *({"mode": kind, "cache": cache} for kind in kinds),
        {"mode": "layer_index", "cache": f"{tmp_path}/wrong", "wrong_order": True},
    )
    assert [m["loaded"] for m in modes] == [0, 0, 0, 0]
    assert [m["artifacts"] for m in modes] == [3, 3, 3, 5]  # inline: one for each of 4 layers, and the first piece
    assert all(m["tokens"] == modes[0]["tokens"] and m["kv"] == modes[0]["kv"] for m in modes)
    assert "LayerNameMismatch" in wrong["error"]
    assert "'model.layers.1.self_attn.attn' was updated" in wrong["error"]
    assert "attention reads 'model.layers.0.self_attn.attn'" in wrong["error"]
    for kind in ("inline", "layer_name"):  # in a process that has traced nothing
        (warm,) = starts(model, {"mode": kind, "cache": cache})
        assert (warm.get("loaded"), warm.get("compiled")) == (1, 0), warm
        assert warm["tokens"] == modes[0]["tokens"]


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_qwen3", "tiny_mixtral", "tiny_deepseek_v2"])
def test_every_mode_is_the_same_in_bfloat16(name: str, starts, state: str, tmp_path: Path) -> None:
    found = equality.piecewise(starts, equality.tiny(name, state), tmp_path, dtype="bfloat16")
    assert equality.same(found)
    assert [f["loaded"] for f in found] == [0, 1] * 4


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_qwen3", "tiny_mixtral", "tiny_deepseek_v2"])
def test_every_mode_is_stocks_in_float32(name: str, starts, make_app, state: str, tmp_path: Path) -> None:
    model = models.resolve(make_app(f"model={name}").model, state)
    stock = references.stock(starts, name, model, state, f"{tmp_path}/stock")
    assert equality.same([stock, *equality.piecewise(starts, model, tmp_path)])


def test_what_differs_from_stock_in_bfloat16_is_rounding(starts, state: str, tmp_path: Path) -> None:
    """Stock's whole graph keeps more digits between layers. Told to round where the model does, both are the same."""
    found = equality.compare(starts, equality.tiny("tiny_deepseek_v2", state, **equality.REPORTED), tmp_path)
    assert found["rounded"]["ours_and_stock"]["max"] == 0
    assert found["rounded"]["same_kv"]
    assert found["rounded"]["other_kv_than_without"]
    assert 0 < found["ours_and_stock"]["rms"] <= found["eager_and_stock"]["rms"], found  # the largest is a step or two
    assert all(differs["gap"] <= found["eager_and_stock"]["max"] for differs in found["first_differing_steps"]), found
