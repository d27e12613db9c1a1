"""Which models are compiled without their weights, and why others are not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config import EngineConfig, ModelConfig, ModelSource
from orchestrator.models import weights_needed

PLAIN = {"model_type": "llama"}


def model(folder: Path, config: Any = PLAIN, **files: str) -> ModelConfig:
    folder.mkdir(exist_ok=True)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    for name, text in files.items():
        (folder / f"{name}.json").write_text(text)
    return ModelConfig(name="m", source=ModelSource.path, id=str(folder))


@pytest.mark.parametrize("source", list(ModelSource))
def test_plain_models_need_none(source: ModelSource, tmp_path: Path) -> None:
    found = model(tmp_path)
    found.source, found.tiny = source, dict(PLAIN)
    for extra in ({}, {"kv_cache_dtype": "auto"}, {"quantization": None}):
        assert weights_needed.why(found, EngineConfig(extra=extra)) == ""
    assert weights_needed.why(found, EngineConfig(load_format="runai_streamer")) == ""


@pytest.mark.parametrize(
    ("config", "files", "reason"),
    [
        ({**PLAIN, "quantization_config": {"quant_method": "fp8"}}, {}, "its weights are quantised (config.json)"),
        ({"text_config": {"quantization_config": {"bits": 4}}}, {}, "its weights are quantised (config.json)"),
        ({**PLAIN, "compression_config": {"format": "x"}}, {}, "its weights are quantised (config.json)"),
        (PLAIN, {"hf_quant_config": "{}"}, "its weights are quantised (hf_quant_config.json)"),
        (PLAIN, {"quantize_config": '{"bits": 4}'}, "its weights are quantised (quantize_config.json)"),
        (None, {}, "its config.json cannot be read here"),
        ([], {}, "its config.json cannot be read here"),
    ],
)
def test_quantised_models_need_theirs(config: Any, files: dict[str, str], reason: str, tmp_path: Path) -> None:
    assert weights_needed.why(model(tmp_path, config, **files), EngineConfig()) == reason


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        ({"quantization": "bitsandbytes"}, "engine.extra.quantization=bitsandbytes"),
        ({"kv_cache_dtype": "fp8_e4m3"}, "the scales of engine.extra.kv_cache_dtype=fp8_e4m3 come from the weights"),
        ({"speculative_config": {"method": "eagle"}}, "a draft model may share the model's weights"),
    ],
)
def test_settings_that_need_them(extra: dict[str, Any], reason: str, tmp_path: Path) -> None:
    assert weights_needed.why(model(tmp_path), EngineConfig(extra=extra)) == reason


@pytest.mark.parametrize("format_", ["tensorizer", "somebody_elses"])
def test_loaders_that_may_change_layers_need_them(format_: str, tmp_path: Path) -> None:
    reason = f"engine.load_format={format_} may change layers while it loads"
    assert weights_needed.why(model(tmp_path), EngineConfig(load_format=format_)) == reason


def test_a_hub_that_does_not_answer(monkeypatch) -> None:
    import huggingface_hub

    def nothing(*_: Any, **__: Any) -> str:
        raise OSError("no hub")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", nothing)
    found = ModelConfig(name="m", source=ModelSource.hub, id="someone/model")
    assert weights_needed.why(found, EngineConfig()) == "its config.json cannot be read here"
