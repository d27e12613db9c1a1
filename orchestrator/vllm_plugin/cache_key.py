"""vLLM's compile key without what only says where a replica runs.

Replicas on other hosts, ports, bundles, cores or home folders compile the same code, so they have to look for it under
the same name. vLLM leaves out most of that by itself; this takes the rest out of its factors, for engines that asked
for the plugin (variables.py says which variables). What changes code stays: a model counts by its folder's content
(model_folder.py) instead of its path.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from orchestrator import compat
from orchestrator.compat import table
from orchestrator.vllm_plugin import library_names, model_folder, variables
from orchestrator.vllm_plugin.settings import kv_update_mode


def install() -> None:
    """Wrap `aot_compile_hash_factors`, which names an artifact's folder."""
    compat.patch(table.AOT_FACTORS, _placeless)


def _placeless(original: Callable[[Any], list[str]]) -> Callable[[Any], list[str]]:
    def aot_compile_hash_factors(vllm_config: Any) -> list[str]:
        with without_placement(vllm_config) as left_out:
            if left_out:
                library_names.install()
            return [*original(vllm_config), *(_device(vllm_config) if left_out else [])]

    return aot_compile_hash_factors


@contextmanager
def without_placement(vllm_config: Any) -> Iterator[bool]:
    """While vLLM hashes a configuration: variables and paths that are only placement are not seen.

    Yields:
        Whether that is so; an engine that did not ask for the plugin is left alone.
    """
    if kv_update_mode(vllm_config) is None:
        yield False
        return
    draft = getattr(getattr(vllm_config, "speculative_config", None), "draft_model_config", None)
    with compat.replaced(table.ENV_FACTORS, _reaching_code), ExitStack() as folders:
        for model in filter(None, (vllm_config.model_config, draft)):  # a single module is compiled without a model
            folders.enter_context(_folder_left_out(model))
        yield True


def _device(vllm_config: Any) -> list[str]:
    """A worker's device, unless it is the rank that names the artifact's file anyway.

    Inductor bakes the index into its code. vLLM's Ray executor leaves all of a node's GPUs visible, and any of them may
    be a rank's: then the artifact has a name of its own, and who has another device compiles again.
    """
    import torch

    if not torch.cuda.is_initialized():
        return []
    device = torch.cuda.current_device()
    return [] if device == vllm_config.parallel_config.rank else [f"device {device}"]


def _reaching_code(factors: Callable[[], dict[str, object]]) -> Callable[[], dict[str, object]]:
    def reaching_code() -> dict[str, object]:
        from vllm import envs

        kept = {name: value for name, value in factors().items() if name not in variables.LEFT_OUT}
        return kept | {name: getattr(envs, name) for name in variables.LEFT_OUT_BY_VLLM}

    return reaching_code


@contextmanager
def _folder_left_out(model: Any) -> Iterator[None]:
    """A model counts by its content."""
    before = dict(model.__dict__)
    try:
        model.__dict__["model"] = model_folder.name(model)  # past pydantic's validation
        with _nameless({id(c): c for c in (model.hf_config, model.hf_text_config)}.values()):
            yield
    finally:
        model.__dict__.update(before)


@contextmanager
def _nameless(configs: Any) -> Iterator[None]:
    """transformers keeps the folder that a config came from in the config itself."""
    names = [(config, config.__dict__.get("_name_or_path")) for config in configs]
    try:
        for config, _ in names:
            config.__dict__["_name_or_path"] = ""
        yield
    finally:
        for config, name in names:
            config.__dict__["_name_or_path"] = name
