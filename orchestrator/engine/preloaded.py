"""What the preload server imports: everything that EngineCore and a worker import before they look at a model.

Imported for its effect, once, in the server process; see preload.py.
"""

import torch
import torch._dynamo.aot_compile
import torch._inductor.compile_fx
import torch._inductor.standalone_compile
import vllm.compilation.backends
import vllm.compilation.caching
import vllm.compilation.decorators
import vllm.compilation.piecewise_backend
import vllm.model_executor.models.llama
import vllm.v1.engine.core
import vllm.v1.executor.multiproc_executor
from torch._inductor.codecache import CacheBase, torch_key
from vllm.platforms import current_platform
from vllm.plugins import load_general_plugins

from orchestrator.engine import preload

if current_platform.is_cpu():
    import vllm.v1.worker.cpu_worker
else:
    import vllm.v1.worker.gpu_worker  # noqa: F401

load_general_plugins()
# Each of these takes half a second, once; what they return is remembered, here and in every fork.
torch_key()
CacheBase.get_system()
preload.use_in_this_process()
if torch.cuda.is_initialized():  # a fork of an initialised CUDA is broken: better no server than a broken engine
    raise SystemExit("importing vLLM initialised CUDA; set cold_start.preload=false")
