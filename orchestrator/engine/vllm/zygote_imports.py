"""What a node's zygote imports: everything that a replica, EngineCore and a worker import before they look at a model.

Imported for its effect, once, in the zygote; see fork_context.py.
"""

import importlib
import os
from contextlib import suppress

from orchestrator import compat
from orchestrator.cluster import bytecode
from orchestrator.compat import table
from orchestrator.engine.vllm import device_answers, fork_context

for name in ("VLLM_CONFIGURE_LOGGING", "VLLM_LOGGING_CONFIG_PATH"):
    os.environ.pop(name, None)  # a user's: each fork sets ours, and what these ask for may fail here

with device_answers.imports_without_a_device():
    import vllm.compilation.backends
    import vllm.compilation.caching
    import vllm.compilation.decorators
    import vllm.compilation.piecewise_backend
    import vllm.model_executor.models.llama
    import vllm.renderers.hf
    import vllm.v1.core.sched.scheduler
    import vllm.v1.engine.async_llm
    import vllm.v1.engine.core
    import vllm.v1.executor.multiproc_executor
    from vllm.platforms import current_platform
    from vllm.plugins import load_general_plugins

    import orchestrator.engine.vllm.engine  # noqa: F401

    for name in (
        "compressed_tensors",
        "pyarrow.fs",
        "pyarrow.json",
        "setproctitle",
        "sympy.tensor.tensor",
    ):  # whatever the model
        with suppress(ImportError):
            importlib.import_module(name)
    if current_platform.is_cpu():
        import vllm.v1.attention.backends.cpu_attn
        import vllm.v1.worker.cpu_worker
    else:
        import vllm.v1.worker.gpu_worker  # noqa: F401

    for module in (
        table.DEFAULT_WORKER,
        table.USAGE_MODULE,
        table.ARROW_MODULE,
        table.AOT_MODULE,
        table.COMPILE_MODULE,
        table.STANDALONE_MODULE,
    ):
        compat.load(module)
    load_general_plugins()
    if current_platform.is_cpu():
        with suppress(compat.Gone):  # it looks at every name of every module; each worker would do it once more
            compat.get(table.KERNEL_OVERRIDES)()
            compat.patch(table.KERNEL_OVERRIDES, lambda _: lambda platform: None)
    # Each of these takes half a second, once, and far longer where their files come from a slow disk: Triton's library
    # alone has 400 MB, and its digest is in every compile key. What they return is remembered, here and in every fork.
    with suppress(compat.Gone):
        compat.get(table.TORCH_KEY)()
    with suppress(compat.Gone):
        # with GPUs the whole asks CUDA for the device's name; Triton's part does not
        compat.get(table.SYSTEM if current_platform.is_cpu() else table.TRITON_KEY)()
fork_context.keep_log()
# Forks know the results of both
compat.check()
bytecode.note()


def at_birth() -> None:
    """In each fork of the zygote, before anything else runs in it."""
    if not current_platform.is_cpu():
        fork_context.forget_device()
    fork_context.begin()
