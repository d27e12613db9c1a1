"""vLLM general plugin: layer-index KV update, and piecewise compile on CPU.

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
    from orchestrator.vllm_plugin import backend_seam, piecewise_cpu, trace_once

    piecewise_cpu.install()
    backend_seam.install()
    trace_once.install()
