"""What is odd about a model's folder is told before anything starts, with the file's name."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.config import Device, EngineConfig, EngineKind, ModelConfig
from orchestrator.config.load_formats import FORMATS
from orchestrator.errors import ConfigError, ModelError

# Any of these belongs to a tokenizer that vLLM reads.
_TOKENIZERS = ("*tokenizer*", "vocab.*", "merges.txt", "tekken.json", "*.tiktoken", "*.model", "*.spm")
_TEMPLATES = ("chat_template.*", "additional_chat_templates/*", "tekken.json", "tokenizer.model.v*")
# Kinds of weights, of which vLLM takes the first that is there, and the index of each.
WEIGHTS = {"*.safetensors": "model.safetensors.index.json", "*.bin": "pytorch_model.bin.index.json", "*.pt": ""}
# vLLM's pooling models: classifiers, and encoders without a head.
_EMBEDS = re.compile(
    r"For(Sequence|Token|Image)Classification$|ForMaskedLM$|ForQuestionAnswering$|RewardModel$"
    r"|(Bert|Roberta|Electra|Deberta|MPNet|Bidirectional|ColBERT|CLIP|Siglip|Gte)\w*Model$"
)
_AGAIN = "Fetch the model again."


def check(folder: Path, model: ModelConfig, engine: EngineConfig) -> None:
    """Is a folder whole, and does its model fit the engine?

    Raises:
        ModelError: a file is missing, or is not what its name says.
        ConfigError: the model does not fit the engine's settings.
    """
    if folder.is_file():
        raise _error(model, f"{folder} is a file.", "Set model.id to a model's folder.")
    check_config(_json(folder / "config.json", model, "Set model.id to a model's folder."), str(folder), model, engine)
    if engine.kind is EngineKind.fake:
        return
    if model.weights and (known := FORMATS.get(engine.load_format)) and known.weight_files:
        _check_weights(folder, model)
    if not engine.extra.get("skip_tokenizer_init") and not engine.extra.get("tokenizer"):
        if not _any(folder, _TOKENIZERS):
            raise _error(model, f"No tokenizer in {folder}.", "Copy tokenizer.json and tokenizer_config.json there.")
        if model.chat and not _has_template(folder, model):
            raise _error(model, f"model.chat=true, and {folder} has no chat template.", "Set model.chat=false.")


def check_config(config: Mapping[str, Any], where: str, model: ModelConfig, engine: EngineConfig) -> None:
    """Does a model fit the engine, by its config.json?

    Args:
        config: what is in that file.
        where: the folder that it is in, for messages.
        model, engine: the settings.

    Raises:
        ModelError: the model generates no text.
        ConfigError: the model does not fit the engine's settings.
    """
    check_sizes(model, config, engine)
    if engine.kind is not EngineKind.fake:
        _check_generates(config, where, model, engine)


def check_sizes(model: ModelConfig, config: Mapping[str, Any], engine: EngineConfig) -> None:
    """Can vLLM split the model's heads over its ranks, and has the platform their size?

    Raises:
        ConfigError: no.
    """
    text = config.get("text_config") or config
    if not isinstance(text, Mapping):
        return
    attention = _number(text, "num_attention_heads")
    kv, ranks = _number(text, "num_key_value_heads") or attention, engine.tensor_parallel_size
    fits = [n for n in range(1, attention + 1) if attention % n == 0 and (kv % n == 0 or n % kv == 0)]
    if attention and ranks not in fits:
        raise ConfigError(
            f"engine.tensor_parallel_size={ranks} does not divide {model.name}'s {attention} attention heads "
            f"and {kv} KV heads.",
            where="engine.tensor_parallel_size",
            hint=f"It can be {', '.join(map(str, fits))}.",
        )
    size = _head_size(text, attention)
    known = _cpu_head_sizes() if engine.device is Device.cpu and engine.kind is EngineKind.vllm and size else []
    if known and size not in known:
        raise ConfigError(
            f"The heads of {model.name} have {size} numbers each; vLLM's attention on CPU takes "
            f"{', '.join(map(str, known))}.",
            where="model",
            hint="Take engine=gpu, or a model with another head_dim.",
        )


def _check_generates(config: Mapping[str, Any], folder: str, model: ModelConfig, engine: EngineConfig) -> None:
    """A replica is ready once it has generated a token, which a model for embeddings or classes never does."""
    named = config.get("architectures")
    names = [str(name) for name in named] if isinstance(named, list) else []
    if names and all(map(_EMBEDS.search, names)) and engine.extra.get("model_impl") is None:
        raise _error(
            model,
            f"{folder}/config.json names {', '.join(names)}, which generates no text.",
            "Take a model that does; embeddings and classes are `vllm serve`'s.",
        )


def _check_weights(folder: Path, model: ModelConfig) -> None:
    there = [pattern for pattern in WEIGHTS if any(folder.glob(pattern))]
    indexes = [name for pattern, name in WEIGHTS.items() if pattern in (there or WEIGHTS) and name]
    index = next((folder / name for name in indexes[:1] if (folder / name).exists()), None)
    named = (_json(index, model, _AGAIN).get("weight_map") if index else None) or {}
    files = sorted(set(named.values())) if isinstance(named, Mapping) else []
    if missing := [name for name in files if not (folder / str(name)).is_file()]:
        more = f" and {len(missing) - 1} more" if missing[1:] else ""
        raise _error(model, f"{index} names {missing[0]}{more}: not there.", _AGAIN)
    if broken := [file for pattern in there[:1] for file in folder.glob(pattern) if not file.exists()]:
        raise _error(model, f"{broken[0]} is a link to nothing.", _AGAIN)
    if not there:
        raise _error(model, f"No weights in {folder}.", "Fetch the model again, or set model.weights=false.")


def _has_template(folder: Path, model: ModelConfig) -> bool:
    tokenizer = folder / "tokenizer_config.json"
    told = _json(tokenizer, model, _AGAIN) if tokenizer.exists() else {}
    return bool(told.get("chat_template")) or _any(folder, _TEMPLATES)


def _json(file: Path, model: ModelConfig, hint: str) -> dict[str, Any]:
    if file.is_symlink() and not file.exists():
        raise _error(model, f"{file} is a link to nothing.", hint)
    if not file.is_file():
        raise _error(model, f"No {file.name} in {file.parent}.", hint)
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _error(model, f"{file} is no JSON: {' '.join(str(error).split())}.", hint) from error
    if not isinstance(found, dict):
        raise _error(model, f"{file} is no JSON object.", hint)
    return found


def _error(model: ModelConfig, message: str, hint: str) -> ModelError:
    return ModelError(message, model=model.name, where="model.id", hint=hint)


def _any(folder: Path, patterns: tuple[str, ...]) -> bool:
    return any(file.exists() for pattern in patterns for file in folder.glob(pattern))


def _number(config: Mapping[str, Any], name: str) -> int:
    """0 where there is none, or one for each layer."""
    found = config.get(name)
    return found if isinstance(found, int) else 0


def _head_size(text: Mapping[str, Any], attention: int) -> int:
    """As vLLM has it for most models; 0 where that is not sure."""
    if {"kv_lora_rank", "hidden_size_per_head", "attention_head_dim"} & set(text):
        return 0
    return _number(text, "head_dim") or (_number(text, "hidden_size") // attention if attention else 0)


def _cpu_head_sizes() -> list[int]:
    """Those of vLLM's attention on CPU, read from its source: it is not imported. Empty where that cannot tell."""
    try:
        found = importlib.util.find_spec("vllm")
        tree = ast.parse((Path(str(found and found.origin)).parent / "v1/attention/backends/cpu_attn.py").read_text())
        told = (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == "get_supported_head_sizes")
        (statement,) = next(told).body
        sizes = ast.literal_eval(statement.value) if isinstance(statement, ast.Return) and statement.value else []
    except (OSError, ValueError, SyntaxError, StopIteration):
        return []
    return [size for size in sizes if isinstance(size, int)]
