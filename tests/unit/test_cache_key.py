"""What names an artifact: the device where it is not the rank, a model's files, vLLM's variables, the CPU."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.graph_cache import key
from orchestrator.vllm_plugin import cache_key, model_folder, variables


@pytest.mark.parametrize(
    ("rank", "device", "factors"),
    [
        (0, None, ["own"]),  # a replica that makes the key initialises no device
        (0, 0, ["own"]),
        (1, 1, ["own"]),
        (0, 4, ["own", "device 4"]),  # vLLM's Ray executor: all GPUs are visible, and this one was free
        (4, 0, ["own", "device 0"]),  # the first one of a second node
    ],
)
def test_a_device_that_is_not_the_rank_is_part_of_the_name(rank: int, device: Any, factors: list, monkeypatch) -> None:
    caching = pytest.importorskip("vllm.compilation.caching")
    import torch

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: device is not None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: device)
    monkeypatch.setattr(caching, "aot_compile_hash_factors", lambda vllm_config: ["own"])
    cache_key.install()
    config: Any = SimpleNamespace(
        additional_config={"orchestrator": {"kv_update": "layer_index"}},
        model_config=None,
        parallel_config=SimpleNamespace(rank=rank),
    )
    assert caching.aot_compile_hash_factors(config) == factors


def test_a_folder_without_sources_is_no_part_of_a_key(tmp_path: Path) -> None:
    """A path that has become wrong would else leave code out of the key, and nobody would see it."""
    (tmp_path / "a.py").write_text("a = 1")
    assert key.source_digest(tmp_path) != key.source_digest(Path(cache_key.__file__).parent)
    with pytest.raises(FileNotFoundError, match=r"no Python sources in .*/nowhere"):
        key.source_digest(tmp_path / "nowhere")


def test_each_variable_of_vllms_is_in_or_out() -> None:
    """A vLLM with one more: say in variables.py whether it can reach compiled code, and why."""
    envs = pytest.importorskip("vllm.envs")
    known = {*envs.environment_variables, *envs.compile_factors()}
    reasons = {**variables.OUT, **variables.IN}
    listed = [name for names in reasons.values() for name in names.split()]
    assert sorted(listed) == sorted(known)
    assert len(reasons) == len(variables.OUT) + len(variables.IN)


def test_what_is_out_changes_no_key_and_what_is_in_does(monkeypatch) -> None:
    envs = pytest.importorskip("vllm.envs")
    found = cache_key._reaching_code(envs.compile_factors)()
    assert set(found) == variables.TAKEN
    monkeypatch.setenv("VLLM_ZENTORCH_WEIGHT_PREPACK", "0")  # vLLM leaves it out, and it decides what is traced
    monkeypatch.setenv("VLLM_CPU_NUM_OF_RESERVED_CPU", "7")
    changed = cache_key._reaching_code(envs.compile_factors)()
    assert [name for name in found if found[name] != changed[name]] == ["VLLM_ZENTORCH_WEIGHT_PREPACK"]


def weights(dtype: str, offset: int = 0) -> bytes:
    tensor = {"dtype": dtype, "shape": [2], "data_offsets": [offset, offset + 8]}
    header = json.dumps({"__metadata__": {"format": "pt"}, "layer.weight": tensor}).encode()
    return len(header).to_bytes(8, "little") + header


@pytest.mark.parametrize(
    ("file", "counts"),
    [
        ("config.json", True),
        ("hf_quant_config.json", True),
        ("my_quantize_config.json", True),  # vLLM takes any name with this ending
        ("2_Dense/config.json", True),
        ("preprocessor_config.json", True),
        ("modeling_mine.py", True),
        ("of_a_later_vllm.json", True),
        ("tokenizer.json", False),
        ("tokenizer_config.json", False),
        ("generation_config.json", False),
        ("chat_template.jinja", False),
        ("model.safetensors.index.json", False),
        ("README.md", False),
    ],
)
def test_a_models_files_count_where_they_can_reach_code(file: str, counts: bool, tmp_path: Path) -> None:
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text("one")
    before = model_folder.content(tmp_path, quantized=False)
    path.write_text("another")
    assert (model_folder.content(tmp_path, quantized=False) != before) == counts


def test_weights_of_a_quantized_model_count_by_type_and_not_by_place(tmp_path: Path) -> None:
    """AWQ and GPTQ leave a layer alone whose weights are not quantised, and find that out from the headers."""
    (tmp_path / "model.safetensors").write_bytes(weights("I32"))
    before = model_folder.content(tmp_path, quantized=True)
    (tmp_path / "model.safetensors").rename(tmp_path / "model-00001-of-00001.safetensors")
    (tmp_path / "model-00001-of-00001.safetensors").write_bytes(weights("I32", 512))
    assert model_folder.content(tmp_path, quantized=True) == before
    (tmp_path / "model-00001-of-00001.safetensors").write_bytes(weights("BF16"))
    assert model_folder.content(tmp_path, quantized=True) != before
    assert model_folder.content(tmp_path, quantized=False) == {}


def test_a_model_by_name_counts_by_its_commit(tmp_path: Path, monkeypatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    seen: list[str] = []

    def cached(model: str, file: str, revision: str) -> str | None:
        seen.append(revision)
        return f"/hub/models--a--b/snapshots/{revision}1234/{file}" if model == "a/b" else None

    monkeypatch.setattr(hub, "try_to_load_from_cache", cached)
    asked: Any = SimpleNamespace(model="a/b", revision=None, quantization=None)
    assert model_folder.name(asked) == "a/b@main1234"
    asked.model = "c/d"
    assert model_folder.name(asked) == "c/d"
    assert seen == ["main", "main"]


def test_a_cpu_counts_by_its_features_and_for_engines_on_it_by_its_name(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("processor: 0\nmodel name\t: EPYC 9\nflags\t\t: avx2 avx\nvmx flags\t: vnmi\n")
    assert key.cpu_factors(info=info)["cpu features"] == "avx avx2"
    assert key.cpu_factors(info=info)["cpu"].endswith(" EPYC 9")
    assert "EPYC" not in key.cpu_factors(model=False, info=info)["cpu"]
