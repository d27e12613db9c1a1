"""Does this vLLM work with the plugin, or refuse it in one line? Run by `make versions`."""

from __future__ import annotations

import os
from pathlib import Path

from hydra import compose, initialize_config_dir

from orchestrator import models
from orchestrator.config import load

ROOT = Path(__file__).resolve().parents[1]
os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}


def main() -> None:
    import vllm

    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        app = load(compose("config", ["model=tiny_llama"]))
    model = models.resolve(app.model, app.state_dir)
    plugin = {"orchestrator": {"kv_update": "layer_index"}}
    try:
        llm = vllm.LLM(
            model, dtype="float32", max_model_len=256, kv_cache_memory_bytes=16 << 20, additional_config=plugin
        )
    except ValueError as error:
        if "is tested with vLLM" not in str(error):
            raise
        print(f"vLLM {vllm.__version__} refuses: {error}")
        return
    answer = llm.generate(["Hello"], vllm.SamplingParams(max_tokens=4, temperature=0), use_tqdm=False)
    print(f"vLLM {vllm.__version__} works: {answer[0].outputs[0].token_ids}")


if __name__ == "__main__":
    main()
