"""What the hardware must at least spend on a start, so that the distance to the limit can be seen."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np

_BLOCK = 256 << 20


def import_s() -> float:
    """Seconds that a fresh Python takes to import vLLM's engine, from a warm page cache."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import vllm.v1.engine.async_llm"], check=True, capture_output=True)
    return time.perf_counter() - began


def weights_s(folder: str) -> float:
    """Seconds to copy a model's weights once, at the speed of this machine's memory."""
    size = sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))
    source = np.ones(_BLOCK, dtype=np.uint8)
    target = np.zeros_like(source)
    times = []
    for _ in range(5):
        began = time.perf_counter()
        np.copyto(target, source)
        times.append(time.perf_counter() - began)
    return size * min(times) / _BLOCK
