"""What of a model's folder can reach compiled code: it counts instead of the folder's path.

vLLM reads quantisation and shapes from many JSON files (`hf_quant_config.json`, `quantize_config.json`, `modules.json`,
processors' …; each quantisation method names its own), and models bring code. So every JSON file and every Python
source counts, but for those that end before the model: tokenizers, templates and sampling defaults. Where weights are
quantised, AWQ and GPTQ look into the weights' headers for layers that are not: then names, types and shapes count.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

_ENDINGS = (".json", ".py")
# `added_tokens.json` counts: a model takes the number of its image token from it.
_NO_CODE = frozenset(
    {
        "tokenizer.json", "tokenizer_config.json", "vocab.json", "special_tokens_map.json", "tekken.json",
        "chat_template.json", "generation_config.json", "trainer_state.json",
    }
)  # fmt: skip
_WEIGHTS = "weights"
_INDEX = ".index.json"  # which file has which weight


def content(folder: Path, *, quantized: bool) -> dict[str, str]:
    """A digest for each file that counts, by its name in the folder.

    Args:
        folder: the model's.
        quantized: its weights' headers count as well, under the name "weights".
    """
    files = [file for file in folder.rglob("*") if file.suffix in _ENDINGS and file.is_file()]
    counted = [file for file in files if file.name not in _NO_CODE and not file.name.endswith(_INDEX)]
    found = {file.relative_to(folder).as_posix(): _digest(file.read_bytes()) for file in sorted(counted)}
    if quantized:
        found[_WEIGHTS] = _digest(json.dumps(sorted(_headers(folder))).encode())
    return found


def name(model: Any) -> str:
    """What stands for a model in the key, in the place of vLLM's `model`: its content, or the commit that it is of.

    Args:
        model: vLLM's ModelConfig.
    """
    folder = Path(model.model)
    if folder.is_dir():
        return _digest(json.dumps(content(folder, quantized=bool(model.quantization))).encode())
    from huggingface_hub import try_to_load_from_cache

    # of a model by name the files come one after the other; its commit says what all of them will be
    config = try_to_load_from_cache(model.model, "config.json", revision=model.revision or "main")
    return f"{model.model}@{Path(config).parent.name}" if isinstance(config, str) else str(model.model)


def _headers(folder: Path) -> list[list[Any]]:
    """Name, type and shape of each weight, wherever it lies."""
    found = []
    for file in folder.glob("*.safetensors"):
        with file.open("rb") as stream:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        found += [[key, known["dtype"], known["shape"]] for key, known in header.items() if key != "__metadata__"]
    return found


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
