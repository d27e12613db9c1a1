"""vLLM: its logging is set up anew in each of its processes, and twice in most; each time Python visits every logger.

`dictConfig` calls `setLevel` for each logger below "vllm", and each of these calls clears a cache in every logger of
the process. vLLM has a logger in each module, so that is quadratic.

Run: python docs/upstream/vllm_logging_set_up.py
"""

from __future__ import annotations

import logging
import time


def main() -> None:
    """Count the loggers, and time one set-up."""
    import vllm
    import vllm.v1.engine.core
    import vllm.v1.executor.multiproc_executor
    import vllm.v1.worker.gpu_worker
    from vllm.logger import _configure_vllm_root_logger

    names = list(logging.root.manager.loggerDict)
    below = sum(name.startswith("vllm.") for name in names)
    began = time.perf_counter()
    _configure_vllm_root_logger()
    seconds = time.perf_counter() - began
    print(f"vllm {vllm.__version__}: {len(names)} loggers, {below} of vLLM; one set-up {1000 * seconds:.0f} ms")


if __name__ == "__main__":
    main()
