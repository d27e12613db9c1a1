"""Start models several times, in several modes, and say what each start did; each request in a fork of its own.

python -m tests.engine.starts reads requests, a JSON line each:
{"model": ..., "environment": {...}, "starts": [{"mode": "stock" | a kv_update mode, "cache": folder}, ...]}
and prints for each start the tokens, a digest of every layer's KV cache, and vLLM's own counters. vLLM is imported
once, before the forks.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import signal
import sys
from typing import Any

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "HF_HUB_OFFLINE": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",  # for kv_digests, with several ranks
}
_DEADLINE_S = 1200  # ends a hang
PROMPTS = ["The capital of France is", "def main(argument):", "Hello, my name is", "0 1 2 3 4 5 6 7 8 9 10"]


def start(model: str, mode: str, cache: str, wrong_order: bool = False, ranks: int = 1) -> dict[str, Any]:
    import torch
    from torch._inductor.cpu_vec_isa import VecISA
    from vllm import LLM, SamplingParams
    from vllm.compilation.counter import compilation_counter
    from vllm.distributed import cleanup_dist_env_and_memory

    from orchestrator.engine.vllm.fork_context import compiler_takes_flags

    # these save time, and change no code
    VecISA.check_build = compiler_takes_flags
    torch._inductor.config.compile_threads = len(os.sched_getaffinity(0))
    os.environ["VLLM_CACHE_ROOT"] = cache
    torch._dynamo.reset()
    before = compilation_counter.clone()
    plugin = {} if mode == "stock" else {"additional_config": {"orchestrator": {"kv_update": mode}}}
    if wrong_order:
        plant_wrong_order()
    # a CPU with AMX would take a backend that knows bfloat16 alone
    mla = {"attention_backend": "CPU_MLA"} if "deepseek" in model else {}
    llm = LLM(
        model,
        **mla,
        dtype="float32",
        max_model_len=256,
        max_num_seqs=4,
        max_num_batched_tokens=512,
        kv_cache_memory_bytes=16 << 20,
        enable_prefix_caching=False,
        seed=0,
        tensor_parallel_size=ranks,
        **plugin,
    )
    outputs = llm.generate(PROMPTS, SamplingParams(temperature=0, max_tokens=16, ignore_eos=True), use_tqdm=False)
    found = {
        "tokens": [list(o.outputs[0].token_ids) for o in outputs],
        "kv": [line for rank in llm.collective_rpc(kv_digests) for line in rank],
        "loaded": compilation_counter.num_aot_artifacts_loaded - before.num_aot_artifacts_loaded,
        "compiled": compilation_counter.num_aot_compiles - before.num_aot_compiles,
        "artifacts": compilation_counter.num_compiled_artifacts_saved - before.num_compiled_artifacts_saved,
    }
    del llm
    gc.collect()
    cleanup_dist_env_and_memory()
    return found


def kv_digests(worker: Any) -> list[str]:
    """For each layer its name, a digest of its KV cache, and how many bytes of it are not 0."""
    layers = worker.model_runner.compilation_config.static_forward_context
    caches = [(name, layer.kv_cache) for name, layer in sorted(layers.items()) if hasattr(layer, "kv_cache")]
    found = [(name, _bytes(cache)) for name, cache in caches]
    return [f"{name} {hashlib.sha256(data).hexdigest()[:16]} {len(data) - data.count(0)}" for name, data in found]


def _bytes(cache: Any) -> bytes:
    import torch

    tensors = [cache] if isinstance(cache, torch.Tensor) else list(cache)
    return b"".join(t.contiguous().view(torch.uint8).numpy().tobytes() for t in tensors if t.numel())


def plant_wrong_order() -> None:
    """Announce the first two layers in each other's place, behind the pass's own checks."""
    from orchestrator.vllm_plugin import kv_runtime

    enter, swapped = kv_runtime.enter_piece, {}

    def enter_wrong(names: tuple[str, ...]) -> None:
        first, second = "model.layers.0.self_attn.attn", "model.layers.1.self_attn.attn"
        swapped.update({first: second, second: first})
        enter(tuple(swapped.get(name, name) for name in names))

    kv_runtime.enter_piece = enter_wrong
    enter_wrong.__module__, enter_wrong.__name__, enter_wrong.__qualname__ = (
        kv_runtime.__name__,
        "enter_piece",
        "enter_piece",
    )


def serve() -> None:
    os.environ |= ENVIRONMENT
    import orchestrator.engine.vllm.zygote_imports  # noqa: F401
    from orchestrator.engine.vllm import fork_context

    fork_context.inspect_models_here()
    for line in sys.stdin:
        if (pid := os.fork()) == 0:
            signal.alarm(_DEADLINE_S)
            answer(**json.loads(line))
            os._exit(0)
        print(f"\nENDED {os.waitpid(pid, 0)[1]}", flush=True)


def answer(model: str, environment: dict[str, str], starts: list[dict[str, Any]]) -> None:
    os.environ |= environment
    found = []
    for one in starts:
        try:
            found.append(start(model, **one))
        except Exception as error:
            found.append({"error": f"{type(error).__name__}: {error}"})
    print("\nSTARTS " + json.dumps(found), flush=True)


if __name__ == "__main__":
    serve()
