"""Start models several times, in several modes, and say what each start did; each request in a fork of its own.

python -m tests.engine.starts reads requests, a JSON line each:
{"model": ..., "environment": {...}, "starts": [{"mode": "stock" | "eager" | a kv_update mode, "cache": folder}, ...]}
and prints for each start the tokens, a digest of every layer's KV cache, and vLLM's own counters. vLLM is imported
once, before the forks. "eager" is stock vLLM that compiles nothing, and runs the same ops.
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


def start(
    model: str,
    mode: str,
    cache: str,
    wrong_order: bool | str = False,
    ranks: int = 1,
    dtype: str = "float32",
    max_tokens: int = 16,
    logits: str | None = None,
    forced: list[list[int]] | None = None,
    rounded: bool = False,
) -> dict[str, Any]:
    """One start of a model.

    Args:
        model: its folder.
        mode: "stock", "eager", or a mode of the plugin's.
        cache: vLLM's cache folder.
        wrong_order: exchange two layers' names behind the pass's checks; "unguarded": and silence the guard.
        ranks: tensor parallel size.
        dtype: of weights, activations and KV cache.
        max_tokens: for each prompt.
        logits: a file for the logits of every step, as an array [prompt, step, token].
        forced: with `logits`, say these tokens whatever the logits are, so that every step has the same context.
        rounded: compiled code rounds to `dtype` wherever the traced graph says so, also where values stay in registers.
    """
    import numpy
    import torch
    from torch._inductor.cpu_vec_isa import VecISA
    from vllm import LLM, SamplingParams
    from vllm.compilation.counter import compilation_counter
    from vllm.distributed import cleanup_dist_env_and_memory

    from orchestrator.engine.vllm.fork_context import compiler_takes_flags

    # these save time, and change no code
    VecISA.check_build = compiler_takes_flags
    torch._inductor.config.compile_threads = len(os.sched_getaffinity(0))
    torch._inductor.config.emulate_precision_casts = rounded
    os.environ["VLLM_CACHE_ROOT"] = cache
    torch._dynamo.reset()
    before = compilation_counter.clone()
    # Without compile vLLM calls kernels of its own; the rotary one is wrong for MLA on CPU. Take PyTorch's ops instead:
    # they are also the ones that are compiled.
    stock = {"stock": {}, "eager": {"enforce_eager": True, "compilation_config": {"custom_ops": ["none"]}}}
    plugin = stock.get(mode, {"additional_config": {"orchestrator": {"kv_update": mode}}})
    steps: list[list[Any]] = [[] for _ in PROMPTS]
    if wrong_order:
        plant_wrong_order(guarded=wrong_order != "unguarded")
    # a CPU with AMX would take a backend that knows bfloat16 alone
    mla = {"attention_backend": "CPU_MLA"} if "deepseek" in model else {}
    llm = LLM(
        model,
        **mla,
        dtype=dtype,
        max_model_len=256,
        max_num_seqs=4,
        max_num_batched_tokens=512,
        kv_cache_memory_bytes=16 << 20,
        enable_prefix_caching=False,
        seed=0,
        tensor_parallel_size=ranks,
        logits_processors=[recorder(steps, forced)] if logits else None,
        **plugin,
    )
    greedy = {"temperature": 0, "max_tokens": max_tokens, "ignore_eos": True}
    sampling = [SamplingParams(**greedy, extra_args={"prompt": number}) for number in range(len(PROMPTS))]
    outputs = llm.generate(PROMPTS, sampling, use_tqdm=False)
    if logits:
        numpy.save(logits, numpy.array(steps))
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


def recorder(steps: list[list[Any]], forced: list[list[int]] | None) -> type:
    """A logits processor that appends each step's logits to its prompt's list, and says the forced token if any."""
    import torch
    from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

    class Recorder(AdapterLogitsProcessor):
        def is_argmax_invariant(self) -> bool:
            return False

        def new_req_logits_processor(self, params: Any) -> Any:
            prompt = (params.extra_args or {}).get("prompt")  # a warm-up has none

            def record(output: list[int], logits: torch.Tensor) -> torch.Tensor:
                steps[prompt].append(logits.float().numpy().copy())
                if forced is None:
                    return logits
                only = torch.full_like(logits, float("-inf"))
                only[forced[prompt][len(output)]] = 0.0
                return only

            return None if prompt is None else record

    return Recorder


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


def plant_wrong_order(guarded: bool = True) -> None:
    """Announce the first two layers in each other's place, behind the pass's own checks."""
    from orchestrator.vllm_plugin import kv_runtime

    enter, swapped = kv_runtime.enter_piece, {}

    def enter_wrong(names: tuple[str, ...]) -> None:
        first, second = "model.layers.0.self_attn.attn", "model.layers.1.self_attn.attn"
        swapped.update({first: second, second: first})
        enter(tuple(swapped.get(name, name) for name in names))

    def check_nothing(position: int, layer_name: Any) -> None:
        pass

    planted = {"enter_piece": enter_wrong} | ({} if guarded else {"check_layer": check_nothing})
    for name, function in planted.items():  # the stitching code calls them by module and name
        function.__module__, function.__name__, function.__qualname__ = kv_runtime.__name__, name, name
        setattr(kv_runtime, name, function)


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
