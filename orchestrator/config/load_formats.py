"""`engine.load_format`: vLLM's loaders of weights and what each needs, looked at before anything starts."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

from orchestrator.config.enums import Device, EngineKind
from orchestrator.errors import ConfigError

_PLUGINS = "vllm.general_plugins"  # where other packages may register loaders of their own
_OURS = "orchestrator"


@dataclass(frozen=True)
class LoadFormat:
    """One of vLLM's.

    Attributes:
        module: what vLLM imports for it; "" where vLLM has all that it needs.
        package: what brings that.
        gpus: it loads onto CUDA devices alone.
        plain: weights reach the model as they are; others change its layers while they load.
        weight_files: it reads a folder's safetensors, .bin or .pt files; see models/folder.py.
    """

    module: str = ""
    package: str = ""
    gpus: bool = False
    plain: bool = True
    weight_files: bool = False


FORMATS: dict[str, LoadFormat] = {
    "auto": LoadFormat(weight_files=True),
    "hf": LoadFormat(weight_files=True),
    "safetensors": LoadFormat(weight_files=True),
    "pt": LoadFormat(weight_files=True),
    "npcache": LoadFormat(),
    "mistral": LoadFormat(),
    "fastsafetensors": LoadFormat("fastsafetensors", "fastsafetensors", gpus=True, weight_files=True),
    "instanttensor": LoadFormat("instanttensor", "instanttensor", gpus=True, weight_files=True),
    "runai_streamer": LoadFormat("runai_model_streamer", "runai-model-streamer", weight_files=True),
    "runai_streamer_sharded": LoadFormat("runai_model_streamer", "runai-model-streamer", plain=False),
    "sharded_state": LoadFormat(plain=False),
    "tensorizer": LoadFormat("tensorizer", "tensorizer", plain=False),
    "modelexpress": LoadFormat("modelexpress", "modelexpress", gpus=True, plain=False),
    "ipc_cache": LoadFormat(gpus=True, plain=False),
    # of versions before 0.32
    "bitsandbytes": LoadFormat("bitsandbytes", "bitsandbytes", gpus=True, plain=False),
    "gguf": LoadFormat(plain=False),
}


def check(app: Any) -> None:
    """Check a configuration's format: is it vLLM's, is its package here, and does it load onto this device?

    Raises:
        ConfigError: no.
    """
    name, where = app.engine.load_format, "engine.load_format"
    if name == "dummy":
        raise ConfigError(f"{where}=dummy is what model.weights=false sets.", where=where, hint="Set that.")
    if name != "auto" and not app.model.weights:
        raise ConfigError(
            f"{where}={name} loads weights, and model.weights=false has none.",
            where=where,
            hint="Set engine.load_format=auto.",
        )
    if app.engine.kind is not EngineKind.vllm:
        return
    found = FORMATS.get(name)
    if found is None:
        if _other_plugins():
            return  # one of them may have registered it
        raise ConfigError(
            f"{where}={name} is no load format of vLLM's.", where=where, hint=f"It has {', '.join(FORMATS)}."
        )
    if found.gpus and app.engine.device is Device.cpu:
        raise ConfigError(
            f"{where}={name} loads onto GPUs alone.", where=where, hint="Take auto or runai_streamer on CPUs."
        )
    if found.module and _here("vllm") and not _here(found.module):
        raise ConfigError(
            f"{where}={name} needs the package {found.package}.", where=where, hint=f"pip install {found.package}"
        )


def _other_plugins() -> list[str]:
    return [point.name for point in entry_points(group=_PLUGINS) if not point.value.startswith(_OURS)]


def _here(module: str) -> bool:
    return importlib.util.find_spec(module) is not None
