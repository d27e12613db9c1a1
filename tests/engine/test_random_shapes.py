"""Made-up small models in bfloat16: the plugin says and stores, byte for byte, what vLLM's own `split` does.

The tiny models of conf/model are all of one size. Here heads, head sizes, KV ranks, depth, dense first layers and
experts are drawn, each shape from a seed of its own: a number names the same shape on every machine.
"""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import pytest

from orchestrator import models
from orchestrator.config import ModelConfig, ModelSource
from tests import whole
from tests.engine import equality

# vLLM's CPU kernel for MLA decodes 512 + 64 alone: with other sizes only the prompt is run.
_MLA_OTHER_SIZES = ((256, 64), (448, 128), (544, 32), (288, 32), (192, 128))  # KV rank, rotary part of a head
ALL = [(kind, number) for kind in whole.SHAPE_KINDS for number in range(whole.SHAPES)]
SOME = [(kind, number) for kind in whole.SHAPE_KINDS for number in (1, 8, 15)]
FEW = [(kind, number) for kind in whole.SHAPE_KINDS for number in (2, 9)]


def dense(draw: Random) -> dict[str, Any]:
    kv_heads = draw.choice([1, 2, 3, 4])
    found = {
        "model_type": draw.choice(["llama", "qwen3"]),
        "hidden_size": 32 * draw.randint(2, 8),
        "intermediate_size": 32 * draw.randint(2, 12),
        "num_attention_heads": kv_heads * draw.choice([1, 2, 3]),
        "num_key_value_heads": kv_heads,
        "head_dim": draw.choice([32, 64, 80, 96, 112, 128]),
        "tie_word_embeddings": draw.random() < 0.3,
    }
    if found["hidden_size"] % found["num_attention_heads"]:  # transformers refuses it for Llama
        found["hidden_size"] = 32 * found["num_attention_heads"]
    return found


def moe(draw: Random) -> dict[str, Any]:
    """Mixtral, Qwen3-MoE with dense layers first, Qwen2-MoE with a shared expert as well."""
    found = dense(draw) | {"model_type": draw.choice(["mixtral", "qwen3_moe", "qwen2_moe"])}
    experts = draw.randint(2, 8)
    found["num_experts_per_tok"] = draw.randint(1, min(experts, 3))
    dense_first = draw.choice([0, 0, 1, 2])
    if found["model_type"] == "mixtral":
        return found | {"num_local_experts": experts, "sliding_window": None}
    found |= {"num_experts": experts, "moe_intermediate_size": 32 * draw.randint(1, 4)}
    found["mlp_only_layers"] = list(range(dense_first))
    if found["model_type"] == "qwen2_moe":  # which has no head_dim of its own
        found["hidden_size"] = found["num_attention_heads"] * draw.choice([32, 64])
        found["shared_expert_intermediate_size"] = 32 * draw.randint(1, 4)
        del found["head_dim"]
    return found


def mla(draw: Random) -> dict[str, Any]:
    heads = draw.randint(1, 6)
    experts = draw.randint(2, 6)
    rank, rotary = draw.choice([(512, 64)] * 8 + list(_MLA_OTHER_SIZES))
    return {
        "model_type": "deepseek_v2",
        "hidden_size": heads * 32 * draw.randint(1, 2),
        "intermediate_size": 32 * draw.randint(2, 8),
        "moe_intermediate_size": 32 * draw.randint(1, 4),
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "kv_lora_rank": rank,
        "q_lora_rank": draw.choice([None, None, 32, 96]),
        "qk_nope_head_dim": draw.choice([32, 64, 128]),
        "qk_rope_head_dim": rotary,
        "v_head_dim": draw.choice([32, 64, 128]),
        "n_routed_experts": experts,
        "n_shared_experts": draw.randint(1, 2),
        "num_experts_per_tok": draw.randint(1, min(experts, 3)),
        "first_k_dense_replace": draw.randint(0, 4),
        "n_group": 1,
        "topk_group": 1,
    }


def shape(kind: str, number: int) -> dict[str, Any]:
    """The sizes of a kind's shape with this number."""
    draw = Random(f"{kind} {number}")
    found = {"dense": dense, "moe": moe, "mla": mla}[kind](draw)
    return {"num_hidden_layers": draw.randint(2, 4), "max_position_embeddings": 512, **found}


def make(kind: str, number: int, folder: Path) -> tuple[str, dict[str, Any]]:
    """The model's folder, and what its starts have to be told."""
    sizes = shape(kind, number)
    config = ModelConfig(name=f"shape_{sizes['model_type']}", source=ModelSource.tiny, tiny=sizes, seed=number)
    prompt_only = kind == "mla" and (sizes["kv_lora_rank"], sizes["qk_rope_head_dim"]) != (512, 64)
    return models.resolve(config, str(folder)), {"max_tokens": 1} if prompt_only else {}


def test_shapes_differ_and_cover_what_they_are_for() -> None:
    found = {kind: [shape(kind, number) for number in range(whole.SHAPES)] for kind in whole.SHAPE_KINDS}
    for kind, shapes in found.items():
        assert len({str(sizes) for sizes in shapes}) == whole.SHAPES >= 20, kind
        assert {sizes["num_hidden_layers"] for sizes in shapes} == {2, 3, 4}
    assert {s["model_type"] for s in found["dense"]} == {"llama", "qwen3"}
    assert {s["model_type"] for s in found["moe"]} == {"mixtral", "qwen3_moe", "qwen2_moe"}
    assert len({s["kv_lora_rank"] for s in found["mla"]}) >= 4
    assert sum(s["kv_lora_rank"] == 512 for s in found["mla"]) >= 10
    assert {s["n_shared_experts"] for s in found["mla"]} == {1, 2}
    assert {s["first_k_dense_replace"] for s in found["mla"]} == {0, 1, 2, 3, 4}
    assert any(s["first_k_dense_replace"] >= s["num_hidden_layers"] for s in found["mla"])


@pytest.mark.parametrize(("kind", "number"), ALL)
def test_layer_index_is_split_cold_and_warm(kind: str, number: int, starts, tmp_path: Path) -> None:
    model, told = make(kind, number, tmp_path)
    told |= {"dtype": "bfloat16", "cache": f"{tmp_path}/graphs"}
    found = starts(model, *({"mode": mode, **told} for mode in ("split", "layer_index", "layer_index")))
    assert equality.same(found), shape(kind, number)
    assert all(int(layer.split()[2]) > 0 for layer in found[0]["kv"])  # something was written
    assert len({layer.split()[1] for layer in found[0]["kv"]}) == shape(kind, number)["num_hidden_layers"]
    assert [(f["loaded"], f["compiled"]) for f in found] == [(0, 1), (0, 1), (1, 0)]


@pytest.mark.parametrize(("kind", "number"), SOME)
def test_every_mode_is_the_same_cold_and_warm(kind: str, number: int, starts, tmp_path: Path) -> None:
    model, told = make(kind, number, tmp_path)
    found = equality.piecewise(starts, model, tmp_path, dtype="bfloat16", **told)
    assert equality.same(found), shape(kind, number)
    assert [f["loaded"] for f in found] == [0, 1] * 4


@pytest.mark.parametrize(("kind", "number"), FEW)
def test_float32_is_stocks(kind: str, number: int, starts, tmp_path: Path) -> None:
    model, told = make(kind, number, tmp_path)
    found = starts(model, *({"mode": m, "cache": f"{tmp_path}/{m}", **told} for m in ("stock", "layer_index")))
    assert equality.same(found), shape(kind, number)


def test_two_layers_in_each_others_place_are_seen(starts, tmp_path: Path) -> None:
    """The comparison can fail: the first two layers' names are exchanged, and the guard says nothing."""
    model, told = make("dense", 0, tmp_path)
    told |= {"dtype": "bfloat16", "cache": f"{tmp_path}/graphs"}
    right, wrong = starts(model, {"mode": "split", **told}, {"mode": "layer_index", "wrong_order": "unguarded", **told})
    assert "error" not in wrong, wrong
    assert not equality.same([right, wrong])
    first, second = ([layer.split()[1] for layer in found["kv"]][:2] for found in (right, wrong))
    assert first[0] != second[0]
    assert first[1] != second[1]
