"""The compile key of a vLLM engine: vLLM's own factors, what they leave out, and a name for each thing in them."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from types import MethodType
from typing import Any

from orchestrator import compat, vllm_plugin
from orchestrator.compat import features, table
from orchestrator.engine.contract import CompileKey
from orchestrator.graph_cache import key
from orchestrator.vllm_plugin import cache_key, model_folder
from orchestrator.vllm_plugin.settings import logger

_NO_CACHE = ("VLLM_DISABLE_COMPILE_CACHE", "TORCHINDUCTOR_FORCE_DISABLE_CACHES")


def compile_key(vllm_config: Any) -> CompileKey:
    """The compile key of a configuration as vLLM has made it, or why there is nothing to share."""
    if reason := why_unshared(vllm_config):
        logger.info("Compiled graphs are not shared: %s.", reason)
        return CompileKey(unshared=reason)
    return CompileKey(compile_factors(vllm_config))


def why_unshared(vllm_config: Any) -> str:
    """Why an engine saves no graphs that another could load; "" where it does.

    Such engines must neither lead nor wait: nothing would ever be published. vLLM settles the mode while it makes the
    configuration; models with breakable CUDA graphs end up with NONE.
    """
    from vllm import envs
    from vllm.compilation.compiler_interface import is_compile_cache_enabled
    from vllm.config import CompilationMode
    from vllm.platforms import current_platform

    compilation = vllm_config.compilation_config
    if compilation.mode != CompilationMode.VLLM_COMPILE:
        return f"vLLM's compilation mode is {CompilationMode(compilation.mode or 0).name}"
    if compilation.backend == "eager":
        return 'the compilation backend "eager" saves nothing'
    if not is_compile_cache_enabled(compilation.inductor_compile_config):
        by = [name for name in _NO_CACHE if os.environ.get(name, "0") != "0"]
        return "the compile cache is disabled" + (f" by {' and '.join(by)}" if by else "")
    if not envs.VLLM_USE_AOT_COMPILE:
        return "VLLM_USE_AOT_COMPILE is off"
    if envs.VLLM_BATCH_INVARIANT and not current_platform.is_cpu():
        return "VLLM_BATCH_INVARIANT switches ahead-of-time compile off in the workers"
    if compat.of_this_vllm(table.ALLOWS_AOT) and vllm_config.model_config.using_transformers_backend():
        return "this vLLM saves no graphs of models that run through Transformers"
    return ""


def compile_factors(vllm_config: Any) -> dict[str, str]:
    """vLLM's own cache-key factors (`aot_compile_hash_factors`) and what they leave out.

    Left out by vLLM and added here: the model class, this plugin's code, FlashInfer, Python, the CPU's instruction set
    or the GPU, and the shape of the parallel group. vLLM's are digests; what went into each stands beside it under its
    own name (`vllm env VLLM_…`, `vllm config cache_config.block_size`, `model quantize_config.json`), so that two keys
    can say what sets them apart.

    Raises:
        compat.Gone: vLLM has no such function any more.
    """
    import torch
    import vllm
    from vllm.platforms import current_platform

    with _no_device_asked(), cache_key.without_placement(vllm_config):
        own = compat.get(table.AOT_FACTORS)(vllm_config)
        environment = compat.get(table.ENV_FACTORS)()
        settings: dict[str, object] = {}
        with suppress(Exception):  # names only explain; the digest decides
            _reading(vllm_config, "", settings).compute_hash()
    parallel, model = vllm_config.parallel_config, vllm_config.model_config
    content = _content(model)
    if content:  # named file by file
        settings.pop("model_config.model", None)
    capability = current_platform.get_device_capability()
    factors = {
        **dict(zip(key.DIGESTS, own, strict=False)),
        **_named("vllm env", environment),
        **_named("vllm config", settings),
        **_named("model", content),
        **key.cpu_factors(model=current_platform.is_cpu()),
        **_named("plugin", key.source_digests(Path(vllm_plugin.__file__).parent)),
        "architecture": ",".join(model.architectures),
        "vllm": vllm.__version__,
        "torch": torch.__version__,
        "python": ".".join(map(str, sys.version_info[:3])),
        "flashinfer": _flashinfer(),
        "device": f"{current_platform.device_type} {current_platform.get_device_name()} {capability}",
        "parallel": f"tp={parallel.tensor_parallel_size} pp={parallel.pipeline_parallel_size} "
        f"dp={parallel.data_parallel_size}",
    }
    if inductor := own[len(key.DIGESTS) - 1 :]:
        factors["inductor"] = hashlib.sha256(repr(inductor).encode()).hexdigest()
        for found in inductor:  # system, torch's sources, Inductor's settings, AOTAutograd's settings
            factors |= _named("inductor", found if isinstance(found, dict) else {"torch sources": found})
    return factors


def _flashinfer() -> str:
    """The versions of FlashInfer and its kernels, and whether vLLM would use them: custom ops of its lie in graphs."""
    from vllm.utils.flashinfer import has_flashinfer

    versions = []
    for name in ("flashinfer-python", "flashinfer-cubin", "flashinfer-jit-cache"):
        with suppress(metadata.PackageNotFoundError):
            versions.append(f"{name} {metadata.version(name)}")
    return ", ".join([*versions, "used" if has_flashinfer() else "not used"])


def _content(model: Any) -> dict[str, str]:
    folder = Path(model.model)
    return model_folder.content(folder, quantized=bool(model.quantization)) if folder.is_dir() else {}


def _reading(config: Any, path: str, found: dict[str, object]) -> Any:
    """A configuration that notes what is read of it, by dotted names: so it tells what vLLM's `compute_hash` hashes."""
    kind = type(config)

    def read(self: Any, name: str) -> Any:
        if name.startswith("__"):
            return object.__getattribute__(self, name)
        value = getattr(config, name)
        if isinstance(value, MethodType) and value.__self__ is config:
            return MethodType(value.__func__, self)
        if hasattr(value, "compute_hash"):
            return _reading(value, f"{path}{name}.", found)
        found[f"{path}{name}"] = value
        return value

    reading = type(kind.__name__, (kind,), {"__getattribute__": read, "__module__": kind.__module__})
    return object.__new__(reading)


def _named(group: str, values: Mapping[str, object]) -> dict[str, str]:
    """Factors of a group, one for each value that has a stable form; the group's digest stands for the others."""
    normal = compat.get(table.NORMAL)
    named: dict[str, str] = {}
    for name, value in values.items():
        try:
            plain = value.hex() if isinstance(value, bytes) else normal(value)
        except Exception:
            continue
        whole = _object(plain)
        if whole is not None:  # a model's own configuration: each of its settings has a name
            named |= {f"{group} {name}.{part}": json.dumps(v, sort_keys=True) for part, v in whole.items()}
        elif plain is not None:
            named[f"{group} {name}"] = (
                plain if isinstance(plain, str) else json.dumps(plain, sort_keys=True, default=str)
            )
    return named


def _object(text: object) -> dict[str, Any] | None:
    """The JSON object that a text is, if it is one."""
    if not isinstance(text, str) or not text.startswith("{"):
        return None
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


@contextmanager
def _no_device_asked() -> Iterator[None]:
    """Inductor's factors hold the GPU's name, and asking for it initialises CUDA here; the key has it from NVML."""
    import torch

    if torch.version.cuda is None or not compat.on(features.NO_DEVICE):
        yield
        return
    named = {"triton": compat.get(table.TRITON_KEY)(), "cuda": torch.version.cuda}
    with compat.replaced(table.SYSTEM, lambda _: lambda: named):
        yield
