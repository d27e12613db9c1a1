"""vLLM general plugin: layer-index KV update, one trace for all layers, and piecewise compile on CPU.

vLLM calls `register` in every process it starts. Nothing changes for an engine unless its configuration asks:
`additional_config={"orchestrator": {"kv_update": "layer_index"}}`.
"""

from __future__ import annotations

_registered = False


def register() -> None:
    """Entry point of the group `vllm.general_plugins`; safe to call more than once."""
    global _registered
    if _registered:
        return
    _registered = True
    import vllm

    from orchestrator.compat import versions

    if not versions.supported(vllm.__version__):
        _refuse_when_asked(vllm.__version__)
        return
    from orchestrator.vllm_plugin import cache_key, compiler_hooks, piecewise_cpu, trace_once

    piecewise_cpu.install()
    compiler_hooks.install()
    trace_once.install()
    cache_key.install()


def _refuse_when_asked(version: str) -> None:
    """Leave this vLLM alone, and say so to an engine that asks for the plugin."""
    from typing import Any

    from orchestrator import compat
    from orchestrator.compat import table, versions
    from orchestrator.vllm_plugin.settings import NAME, kv_update_mode

    def refusing(create: Any) -> Any:
        def create_engine_config(self: Any, *args: Any, **kwargs: Any) -> Any:
            if kv_update_mode(self) is not None:
                raise ValueError(
                    f"orchestrator's kv_update works with vLLM {versions.span()}, and this is {version}: "
                    f'install one of these, or remove additional_config["{NAME}"].'
                )
            return create(self, *args, **kwargs)

        return create_engine_config

    compat.patch(table.ENGINE_CONFIG, refusing)
