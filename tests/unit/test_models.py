"""What is odd about a model is told before anything starts, with the file's name; what is whole is taken."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from orchestrator import models
from orchestrator.config import Device, EngineConfig, EngineKind, ModelConfig, ModelSource
from orchestrator.errors import ConfigError, ModelError
from tests.unit.commands import ROOT

SIZES = {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 256, "head_dim": 64}
SHARDS = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """A model's folder with two shards."""
    folder = tmp_path / "my (model), josé"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **SIZES}))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    (folder / "model.safetensors.index.json").write_text(json.dumps(SHARDS))
    for number in (1, 2):
        (folder / f"model-{number}.safetensors").touch()
    return folder


def resolve(folder: Path | str, chat: bool = True, **engine: object) -> str:
    model = ModelConfig(name="mine", source=ModelSource.path, id=str(folder), chat=chat)
    return models.resolve(model, "/nowhere", EngineConfig(**engine))


def remove(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def put(name: str, content: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(content)


def dangle(name: str) -> Callable[[Path], object]:
    def link(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to("/nowhere/blob")

    return link


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (remove("config.json"), "No config.json in"),
        (put("config.json", "{'a': 1}"), "config.json is no JSON"),
        (put("config.json", ""), "config.json is no JSON"),
        (put("config.json", "[]"), "config.json is no JSON object"),
        (put("config.json", "version https://git-lfs.github.com/spec/v1"), "config.json is no JSON"),
        (dangle("config.json"), "config.json is a link to nothing"),
        (remove("model-2.safetensors"), "index.json names model-2.safetensors: not there"),
        (dangle("model-1.safetensors"), "index.json names model-1.safetensors: not there"),
        (put("model.safetensors.index.json", "{"), "index.json is no JSON"),
        (dangle("other.safetensors"), "other.safetensors is a link to nothing"),
        (put("tokenizer_config.json", "{}"), "has no chat template"),
        (put("tokenizer_config.json", '{"chat_template": null}'), "has no chat template"),
        (put("tokenizer_config.json", "nonsense"), "tokenizer_config.json is no JSON"),
    ],
)
def test_what_is_wrong_with_a_folder_names_the_file(harm, said: str, whole: Path) -> None:
    assert resolve(whole) == str(whole)
    harm(whole)
    with pytest.raises(ModelError) as caught:
        resolve(whole)
    assert said in str(caught.value)
    assert str(whole) in str(caught.value)
    assert caught.value.hint


def test_without_tokenizer_or_weights(whole: Path) -> None:
    for file in whole.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ModelError, match="No tokenizer in"):
        resolve(whole)
    assert resolve(whole, extra={"skip_tokenizer_init": True})
    assert resolve(whole, extra={"tokenizer": "/another"})
    (whole / "tokenizer.json").write_text("{}")
    (whole / "model.safetensors.index.json").unlink()
    for file in whole.glob("*.safetensors"):
        file.unlink()
    with pytest.raises(ModelError, match="No weights in"):
        resolve(whole, chat=False)


@pytest.mark.parametrize(
    "change",
    [
        put("pytorch_model.bin.index.json", json.dumps({"weight_map": {"a": "pytorch_model-1.bin"}})),  # not fetched
        put("consolidated.safetensors.index.json", json.dumps({"weight_map": {"a": "no.safetensors"}})),
        put("config.json", json.dumps({"text_config": None, "vision_config": None, "quantization_config": None})),
        put("config.json", json.dumps({"num_attention_heads": None, "head_dim": None, "text_config": SIZES})),
        put("config.json", json.dumps({"num_attention_heads": [4, 8], "num_key_value_heads": [1, 2]})),  # by layer
        put("model.safetensors.index.json", json.dumps({"weight_map": None})),
    ],
)
def test_what_is_only_unusual_is_taken(change, whole: Path) -> None:
    change(whole)
    assert resolve(whole) == str(whole)


def test_a_template_in_a_file_of_its_own(whole: Path) -> None:
    (whole / "tokenizer_config.json").write_text("{}")
    (whole / "chat_template.jinja").write_text("{{ messages }}")
    assert resolve(whole)
    (whole / "chat_template.jinja").unlink()
    assert resolve(whole, chat=False)
    assert resolve(whole, kind=EngineKind.fake)


def test_no_folder_or_a_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"No config\.json in /no/such/folder"):
        resolve("/no/such/folder")
    (tmp_path / "model.gguf").touch()
    with pytest.raises(ModelError, match=r"model\.gguf is a file"):
        resolve(tmp_path / "model.gguf")


@pytest.mark.parametrize(
    ("sizes", "device", "said"),
    [
        ({"head_dim": 48}, Device.cpu, "48 numbers each"),
        ({"head_dim": 48}, Device.gpu, ""),
        ({"head_dim": None, "hidden_size": 4 * 40}, Device.cpu, "40 numbers each"),
        ({"head_dim": None, "hidden_size": 4 * 80}, Device.cpu, ""),
        ({"head_dim": None, "hidden_size": 4 * 40, "kv_lora_rank": 512}, Device.cpu, ""),
        ({"num_attention_heads": 5}, Device.cpu, ""),
    ],
)
def test_head_sizes_that_the_platform_lacks(
    sizes: dict, device: Device, said: str, whole: Path, tmp_path: Path
) -> None:
    pytest.importorskip("vllm")
    (whole / "config.json").write_text(json.dumps({"model_type": "llama", **SIZES, **sizes}))
    tiny = ModelConfig(name="t", source=ModelSource.tiny, tiny={"model_type": "llama", **SIZES, **sizes}, weights=False)
    if not said:
        assert resolve(whole, device=device)
        return
    for refused in (lambda: resolve(whole), lambda: models.resolve(tiny, str(tmp_path), EngineConfig())):
        with pytest.raises(ConfigError, match=said):
            refused()
    assert not (tmp_path / "models").exists()  # told before it was made


@pytest.mark.parametrize("file", sorted((ROOT / "conf" / "model").glob("tiny_*.yaml")), ids=lambda p: p.stem)
def test_our_own_shapes_fit(file: Path) -> None:
    sizes = yaml.safe_load(file.read_text())["tiny"]
    models.folder.check_sizes(ModelConfig(name=file.stem), sizes, EngineConfig())


def named(folder: Path, *architectures: str) -> Path:
    (folder / "config.json").write_text(json.dumps({"architectures": list(architectures), **SIZES}))
    return folder


@pytest.mark.parametrize(
    "architecture",
    ["BertModel", "XLMRobertaModel", "Qwen2ForSequenceClassification", "BertForMaskedLM", "LlamaBidirectionalModel",
     "NomicBertModel", "Qwen2ForRewardModel", "ModernBertForSequenceClassification", "HF_ColBERTModel"],
)  # fmt: skip
def test_a_model_that_generates_nothing_is_refused(architecture: str, whole: Path) -> None:
    with pytest.raises(ModelError, match="generates no text"):
        resolve(named(whole, architecture))


@pytest.mark.parametrize(
    "architectures",
    [["LlamaForCausalLM"], ["GPT2LMHeadModel"], ["ChatGLMModel"], ["InternVLChatModel"],
     ["Qwen2VLForConditionalGeneration"], ["OfMyOwn"], [], ["BertModel", "LlamaForCausalLM"]],
)  # fmt: skip
def test_every_other_one_is_vllms_to_judge(architectures: list[str], whole: Path) -> None:
    assert resolve(named(whole, *architectures)) == str(whole)
