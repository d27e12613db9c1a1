"""What the layer index and its guard cost in steady state, measured by themselves."""

from __future__ import annotations

import time
from types import SimpleNamespace

_CALLS = 200_000


def microseconds() -> float:
    """Microseconds for one layer of one forward: `enter_piece`, `next_layer` and `check_layer`."""
    from vllm import forward_context

    from orchestrator.vllm_plugin import kv_runtime

    names = ("model.layers.0.self_attn.attn",)
    with forward_context.override_forward_context(SimpleNamespace()):
        began = time.perf_counter()
        for _ in range(_CALLS):
            kv_runtime.enter_piece(names)
            kv_runtime.next_layer()
            kv_runtime.check_layer(0, names[0])
        return (time.perf_counter() - began) / _CALLS * 1e6
