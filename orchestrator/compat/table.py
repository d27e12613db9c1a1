"""The one table of names that we lean on: patched, or private, or called in a way that nobody promised to keep.

Nothing is imported here. `takes` is the signature as we know it, "..." standing for any further parameters; `named` are
parameters that we pass by name, wherever they stand.
"""

# ruff: noqa: E501 - one name, one line: a table is read by its columns
from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from orchestrator.compat import features as f


class Use(Enum):
    """What we do with a name."""

    patched = "patched"  # for good, in this process
    replaced = "replaced for a moment"
    answered = "answered for a moment"
    set = "set"  # a value, no code
    called = "called"
    read = "read"
    base = "base class"
    overridden = "overridden"
    imported = "imported ahead"


@dataclass(frozen=True)
class Name:
    """One name.

    Attributes:
        module: where it lives.
        attribute: dotted, from the module; of a class also what its instances get in `__init__`. "" for the module.
        use: what we do with it.
        features: what needs it.
        purpose: what for, in a few words.
        takes: its parameters as we know them; None where we do not care.
        named: parameters that have to be among them.
        since: the vLLM that has it first; in an older one nothing is missing.
    """

    module: str
    attribute: str
    use: Use
    features: tuple[f.Feature, ...]
    purpose: str
    takes: str | None = None
    named: tuple[str, ...] = ()
    since: tuple[int, int] = (0, 0)

    def __str__(self) -> str:
        if not self.attribute:
            return self.module
        return self.attribute if "." in self.attribute else f"{self.module.rpartition('.')[2]}.{self.attribute}"


@dataclass(frozen=True)
class Line:
    """Words that vLLM logs, and that we read: they are no name, so only `drift.py` can look for them.

    Attributes:
        text: the part that never changes.
        features: what needs it.
        since: the vLLM that says it first.
    """

    text: str
    features: tuple[f.Feature, ...]
    since: tuple[int, int] = (0, 0)

    def __str__(self) -> str:
        return f'"{self.text}"'


PORTS = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port", "runtime_env_agent_port")

# fmt: off
# vLLM's compiler: vllm_plugin/
BACKEND_CALL = Name("vllm.compilation.backends", "VllmBackend.__call__", Use.patched, (f.LAYER_INDEX, f.TRACE_ONCE), "know which engine compiles; make a traced graph flat", "self, graph, ...")
SPLIT_GRAPH = Name("vllm.compilation.backends", "split_graph", Use.patched, (f.LAYER_INDEX,), "take layer names out before the split", "graph, splitting_ops")
STITCHING = Name("vllm.compilation.codegen", "generate_execution_code", Use.patched, (f.LAYER_INDEX,), "announce layer names in the stitching code", "split_gm")
KV_UPDATE = Name("vllm.model_executor.layers.attention.attention", "unified_kv_cache_update", Use.called, (f.LAYER_INDEX,), "the update behind our op without a name", "key, value, layer_name")
MLA_KV_UPDATE = Name("vllm.model_executor.layers.attention.mla_attention", "unified_mla_kv_cache_update", Use.called, (f.LAYER_INDEX,), "the same for MLA", "kv_c_normed, k_pe, layer_name, kv_cache_dtype, k_scale")
CUSTOM_OP = Name("vllm.utils.torch_utils", "direct_register_custom_op", Use.called, (f.LAYER_INDEX,), "register our ops as vLLM does its own", None, ("op_name", "op_func", "fake_impl", "target_lib", "dispatch_key"))
USE_LAYERNAME = Name("vllm.utils.torch_utils", "_USE_LAYERNAME", Use.read, (f.LAYER_INDEX,), "can a graph carry layer names as values?")
OP_OVERLOAD = Name("torch._ops", "OpOverload", Use.read, (f.LAYER_INDEX,), "tell custom ops in a graph")
OP_PACKET = Name("torch._ops", "OpOverloadPacket", Use.read, (f.LAYER_INDEX,), "tell custom ops in a graph")
OP_SCHEMA = Name("torch._ops", "OpOverload._schema", Use.read, (f.LAYER_INDEX,), "an op's argument names")
OP_NAME = Name("torch._ops", "OpOverloadPacket._qualified_op_name", Use.read, (f.LAYER_INDEX,), "an op's name")
PREFILL_CONTEXT = Name("vllm.config", "ParallelConfig.prefill_context_parallel_size", Use.read, (f.LAYER_INDEX,), "left to vLLM")
HISPARSE = Name("vllm.config", "AttentionConfig.hisparse_config", Use.read, (f.LAYER_INDEX,), "left to vLLM", since=(0, 30))
PARTITION = Name("vllm.config", "CompilationConfig.use_inductor_graph_partition", Use.read, (f.LAYER_INDEX,), "left to vLLM")
FUSE_ROPE = Name("vllm.config", "PassConfig.fuse_rope_kvcache", Use.read, (f.LAYER_INDEX,), "a pass that looks for the KV update by its own name, and would not find ours")
FUSE_NORM_ROPE = Name("vllm.config", "PassConfig.fuse_qk_norm_rope_kvcache", Use.read, (f.LAYER_INDEX,), "the same")
FUSE_MLA = Name("vllm.config", "PassConfig.fuse_rope_kvcache_cat_mla", Use.read, (f.LAYER_INDEX,), "the same")
SUBMODULES = Name("torch.nn", "Module._modules", Use.read, (f.LAYER_INDEX,), "a piece's graph, where a compiled backend shadows it")
PARAMETERS = Name("torch.nn", "Module._parameters", Use.read, (f.TRACE_ONCE,), "is a tensor a parameter or a buffer?")
AOT_COMPILE = Name("vllm.compilation.wrapper", "TorchCompileWithNoGuardsWrapper.aot_compile", Use.patched, (f.TRACE_ONCE,), "make repeated layers regions while a model is traced", "self, ...")
REGION = Name("torch.compiler", "nested_compile_region", Use.called, (f.TRACE_ONCE,), "trace one layer of a kind, stamp out the others", "fn, ...", ("max_reuse_entries",))
INLINE = Name("torch._higher_order_ops.passes.inline_invoke_subgraph", "inline_invoke_subgraph", Use.called, (f.TRACE_ONCE,), "make the regions flat again", "gm, ...")
SERIALIZE = Name("vllm.compilation.caching", "VllmSerializableFunction.serialize_compile_artifacts", Use.patched, (f.SMALL_ARTIFACTS,), "leave the traced graph out of a self-contained artifact", "compiled_fn")
EXECUTION_CODE = Name("vllm.compilation.caching", "VllmSerializableFunction.execution_code", Use.read, (f.SMALL_ARTIFACTS,), "is the artifact self-contained?")
GRAPH_MODULE = Name("vllm.compilation.caching", "VllmSerializableFunction.graph_module", Use.set, (f.SMALL_ARTIFACTS,), "the traced graph")
MEGA_ARTIFACT = Name("vllm.envs", "VLLM_USE_MEGA_AOT_ARTIFACT", Use.read, (f.SMALL_ARTIFACTS,), "are artifacts self-contained?")
MEGA_BACKEND = Name("vllm.compilation.backends", "VllmBackend.use_mega_artifact", Use.read, (f.SMALL_ARTIFACTS,), "is this one's?", since=(0, 33))
ALLOWS_AOT = Name("vllm.compilation.wrapper", "TorchCompileWithNoGuardsWrapper._allow_aot_compile", Use.read, (f.COMPILE_KEY,), "is a model's module saved at all?", since=(0, 33))
CPU_CONFIG = Name("vllm.platforms.cpu", "CpuPlatform.check_and_update_config", Use.patched, (f.PIECEWISE,), "restore VLLM_COMPILE, which the CPU platform turns off", "vllm_config")
FIX_PASS_INIT = Name("vllm.compilation.passes.utility.fix_functionalization", "FixFunctionalizationPass.__init__", Use.patched, (f.PIECEWISE,), "does this pass's engine ask?", "self, config")
FIX_PASS = Name("vllm.compilation.passes.utility.fix_functionalization", "FixFunctionalizationPass.__call__", Use.patched, (f.PIECEWISE,), "it names CUDA's ops, which a CPU build lacks", "self, graph")
ENGINE_CONFIG = Name("vllm.engine.arg_utils", "EngineArgs.create_engine_config", Use.patched, (f.REFUSAL,), "refuse an engine that asks, where vLLM is another version", "self, ...")

# the compile key: engine/vllm/compile_key.py, vllm_plugin/cache_key.py, vllm_plugin/library_names.py
AOT_FACTORS = Name("vllm.compilation.caching", "aot_compile_hash_factors", Use.patched, (f.COMPILE_KEY, f.CACHE_KEY), "vLLM's own compile key, without placement", "vllm_config")
ENV_FACTORS = Name("vllm.envs", "compile_factors", Use.replaced, (f.CACHE_KEY,), "leave out variables that only say where a process runs", "")
CODE_HASH = Name("torch._inductor.codecache", "code_hash", Use.patched, (f.LIBRARY_NAMES,), "a library's name without the folders of headers", "code, extra")
CONFIG_HASH = Name("vllm.config", "VllmConfig.compute_hash", Use.called, (f.COMPILE_KEY,), "which settings it reads, by their names", "self, ...")
NORMAL = Name("vllm.config.utils", "normalize_value", Use.called, (f.COMPILE_KEY,), "a setting as it is hashed", "x")
SYSTEM = Name("torch._inductor.codecache", "CacheBase.get_system", Use.replaced, (f.NO_DEVICE,), "Inductor's factors without asking CUDA; remembered in the zygote on CPU", "")
TRITON_KEY = Name("torch._inductor.codecache", "triton_key", Use.called, (f.NO_DEVICE,), "Triton's part of Inductor's factors", "")
TORCH_KEY = Name("torch._inductor.codecache", "torch_key", Use.called, (f.PRELOAD,), "half a second, remembered in the zygote", "")

# processes: engine/vllm/fork_context.py, short_profile.py
MP_CONTEXT = Name("vllm.utils.system_utils", "get_mp_context", Use.patched, (f.FORKS,), "vLLM starts its processes from our forkserver", "")
FORKSERVER = Name("multiprocessing.forkserver", "_forkserver", Use.read, (f.FORKS,), "Python's one forkserver of a process")
FORKSERVER_ADDRESS = Name("multiprocessing.forkserver", "ForkServer._forkserver_address", Use.set, (f.FORKS,), "ours in its place")
FORKSERVER_ALIVE = Name("multiprocessing.forkserver", "ForkServer._forkserver_alive_fd", Use.set, (f.FORKS,), "it ends with its process")
FORKSERVER_PID = Name("multiprocessing.forkserver", "ForkServer._forkserver_pid", Use.set, (f.FORKS,), "has this process got one?")
FORKSERVER_RUN = Name("multiprocessing.forkserver", "ForkServer.ensure_running", Use.patched, (f.FORKS,), "a fork of ours starts no other server", "self")
FORKSERVER_MAIN = Name("multiprocessing.forkserver", "main", Use.called, (f.FORKS,), "the forkserver's loop, in a fork", "listener_fd, alive_r, preload, ...")
MP_ADDRESS = Name("multiprocessing.connection", "arbitrary_address", Use.called, (f.FORKS,), "a free socket's name", "family")
MODEL_LOOK = Name("vllm.model_executor.models.registry", "_run_in_subprocess", Use.patched, (f.MODEL_LOOK,), "look at a model's class in this process", "fn")
CONFIGURE_LOG = Name("vllm.logger", "_configure_vllm_root_logger", Use.called, (f.LOG,), "read VLLM_LOGGING_CONFIG_PATH once more, in a fork", "...")
FORMATTER = Name("vllm.logging_utils", "NewLineFormatter", Use.called, (f.LOG,), "the lines on the console", "fmt, datefmt, style, ...")
COMPILE_THREADS = Name("torch._inductor.config", "compile_threads", Use.set, (f.THREADS,), "as if read in this process")
DECIDE_THREADS = Name("torch._inductor.config", "decide_compile_threads", Use.called, (f.THREADS,), "what it would have read", "")
DYNAMIC_THREADS = Name("torch._inductor.config", "cpp.dynamic_threads", Use.set, (f.THREADS,), "as if read in this process; part of vLLM's key")
CHECK_BUILD = Name("torch._inductor.cpu_vec_isa", "VecISA.check_build", Use.patched, (f.CPU_PROBE,), "answer what restored graphs, or the compiler's flags, have answered", "self, code")
ARCH_FLAGS = Name("torch._inductor.cpu_vec_isa", "VecISA.build_arch_flags", Use.called, (f.CPU_PROBE,), "the compiler's flags", "self")
COMPILER = Name("torch._inductor.cpp_builder", "get_cpp_compiler", Use.called, (f.CPU_PROBE,), "the compiler", "")
PRECOMPILE = Name("torch._inductor.codecache", "_precompile_header", Use.patched, (f.HEADERS,), "no header is needed where all libraries are there", "header, hashable_cmd_line, ...")
KERNEL_OVERRIDES = Name("vllm.platforms.cpu", "CpuPlatform.register_triton_kernel_overrides", Use.patched, (f.PRELOAD,), "done in the zygote, for all its forks: a quarter of a second", "", since=(0, 31))
PROFILE_RUN = Name("vllm.v1.worker.cpu_model_runner", "CPUModelRunner.profile_run", Use.patched, (f.SHORT_PROFILE,), "profile a few tokens", "self, ...")
MAX_TOKENS = Name("vllm.v1.worker.cpu_model_runner", "CPUModelRunner.max_num_tokens", Use.set, (f.SHORT_PROFILE,), "how many tokens it profiles")
DEFAULT_WORKER = Name("ray._private.workers.default_worker", "", Use.imported, (f.PRELOAD,), "what a Ray worker runs")
AOT_MODULE = Name("torch._dynamo.aot_compile", "", Use.imported, (f.PRELOAD,), "what a load or a compile imports")
COMPILE_MODULE = Name("torch._inductor.compile_fx", "", Use.imported, (f.PRELOAD,), "what a load or a compile imports")
STANDALONE_MODULE = Name("torch._inductor.standalone_compile", "", Use.imported, (f.PRELOAD,), "what a load or a compile imports")
USAGE_MODULE = Name("ray._common.usage.usage_lib", "", Use.imported, (f.PRELOAD,), "what a Ray worker imports")
ARROW_MODULE = Name("ray._private.arrow_serialization", "", Use.imported, (f.PRELOAD,), "what a Ray worker imports")
# engine/vllm/overlap.py
ASYNC_LLM_INIT = Name("vllm.v1.engine.async_llm", "AsyncLLM.__init__", Use.patched, (f.OVERLAP,), "which engine is being made?", "self, vllm_config, executor_class, log_stats, ...", ("client_addresses", "client_count", "client_index"))
RENDERER = Name("vllm.renderers.registry", "renderer_from_config", Use.patched, (f.OVERLAP,), "EngineCore starts before this reads the tokenizer", "config, ...")
CORE_CLIENT = Name("vllm.v1.engine.core_client", "EngineCoreClient.make_async_mp_client", Use.patched, (f.OVERLAP,), "take the EngineCore that was started already", "vllm_config, executor_class, log_stats, client_addresses, client_count, client_index, ...")
HANDSHAKE = Name("vllm.v1.engine.utils", "EngineHandshakeMetadata.__init__", Use.patched, (f.OVERLAP,), "EngineCore has been heard: from now on it needs nothing until it is up", "self, addresses, parallel_config")
CORE_INIT = Name("vllm.v1.engine.core", "EngineCore.__init__", Use.patched, (f.OVERLAP,), "read the tokenizer while workers start", "self, vllm_config, ...")
TOKENIZER_OF = Name("vllm.tokenizers.registry", "cached_tokenizer_from_config", Use.patched, (f.OVERLAP,), "who asks while another thread reads it waits for that", "model_config, ...")
# engine/vllm/device_answers.py: the functions stay the same objects, and answer something else while the zygote imports
DEVICE_COUNT = Name("torch.cuda", "device_count", Use.answered, (f.NO_DEVICE_AT_IMPORT,), "FlashInfer's import asks", "")
DEVICE_AVAILABLE = Name("torch.cuda", "is_available", Use.answered, (f.NO_DEVICE_AT_IMPORT,), "Triton, tvm_ffi and FlashInfer ask", "")
DEVICE_CURRENT = Name("torch.cuda", "current_device", Use.answered, (f.NO_DEVICE_AT_IMPORT,), "what an import may ask", "")
DEVICE_PROPERTIES = Name("torch.cuda", "get_device_properties", Use.answered, (f.NO_DEVICE_AT_IMPORT,), "FlashInfer's import asks", "device")
DEVICE_CAPABILITY = Name("torch.cuda", "get_device_capability", Use.answered, (f.NO_DEVICE_AT_IMPORT,), "FlashInfer's import asks", "device")
DEVICE_NAME = Name("torch.cuda", "get_device_name", Use.answered, (f.NO_DEVICE_AT_IMPORT,), "what an import may ask", "device")

# Ray: cluster/, serve/
RAY_PARAMS = Name("ray._private.parameter", "RayParams", Use.replaced, (f.RAY_PORTS,), "give Ray's agents ports that are free", None, PORTS)
RAY_PROCESS = Name("ray._private.services", "start_ray_process", Use.replaced, (f.RAY_PORTS,), "tell raylets the port that Ray keeps from them", "command, process_type, ...")
PRESTART_REQUEST = Name("ray.core.generated.node_manager_pb2", "PrestartWorkersRequest", Use.called, (f.PRESTART,), "have a Ray worker wait for the next replica")
RAYLET_STUB = Name("ray.core.generated.node_manager_pb2_grpc", "NodeManagerServiceStub", Use.called, (f.PRESTART,), "the raylet's calls", "channel")
PRESTART_CALL = Name("ray.core.generated.node_manager_pb2_grpc", "NodeManagerServiceStub.PrestartWorkers", Use.called, (f.PRESTART,), "the call itself")
CHANNEL = Name("ray._private.grpc_utils", "init_grpc_channel", Use.called, (f.PRESTART,), "a channel to a raylet, with Ray's token and TLS", "address, options, ...")
ENVIRONMENT_INFO = Name("ray._private.utils", "get_runtime_env_info", Use.called, (f.PRESTART,), "a runtime environment as raylets take it", "runtime_env, ...")
RAYLET = Name("ray._private.ray_constants", "PROCESS_TYPE_RAYLET", Use.read, (f.RAY_PORTS,), "is it a raylet?")
ASYNC_LLM = Name("vllm.v1.engine.async_llm", "AsyncLLM", Use.patched, (f.SERVE_HOOK,), "our start around the engine that Ray makes", "vllm_config, ...")
SHUTDOWN = Name("vllm.v1.engine.async_llm", "AsyncLLM.shutdown", Use.overridden, (f.SERVE_HOOK,), "nothing left behind", "self, timeout")
STAT_LOGGER = Name("vllm.v1.metrics.loggers", "StatLoggerBase", Use.base, (f.HEALTH,), "when was the last token?", "vllm_config, engine_index")
STATS = Name("vllm.v1.metrics.loggers", "StatLoggerBase.record", Use.overridden, (f.HEALTH,), "the same", "self, scheduler_stats, iteration_stats, ...")
CALLBACK = Name("ray.llm._internal.common.callbacks.base", "CallbackBase", Use.base, (f.SERVE_FRONT,), "before Ray makes vLLM's configuration", "llm_config, raise_error_on_callback, ctx_kwargs, ...")
SCALING = Name("ray.serve.autoscaling_policy", "_apply_autoscaling_config", Use.called, (f.SCALING,), "delays and factors, as Ray Serve applies them to any policy", "policy_func")
METADATA = Name("ray.llm._internal.serve.core.configs.openai_api_models", "to_model_metadata", Use.called, (f.SERVE_FRONT,), "what /v1/models says", "model_id, model_config, overrides, ...")
HTTP_ERROR = Name("ray.llm._internal.serve.core.configs.openai_api_models", "OpenAIHTTPException", Use.called, (f.SERVE_FRONT,), "errors in OpenAI's form", "status_code, message, type, ...")
CLIENT_ERRORS = Name("ray.llm._internal.common.errors", "VLLM_CLIENT_ERRORS", Use.read, (f.SERVE_FRONT,), "what vLLM says of a request is 400")
ENDPOINTS = Name("ray.llm._internal.serve.core.ingress.ingress", "DEFAULT_ENDPOINTS", Use.read, (f.SERVE_FRONT,), "Ray's routes")
INGRESS_INIT = Name("ray.llm._internal.serve.core.ingress.ingress", "init", Use.called, (f.SERVE_FRONT,), "Ray's web application", "")
SERVE_CLIENT = Name("ray.serve.context", "_get_global_client", Use.called, (f.SERVE_FRONT,), "where does Ray Serve listen, and for whom?", None, ("raise_if_no_controller_running",))
PROXY_S = Name("ray.serve._private.constants", "PROXY_READY_CHECK_TIMEOUT_S", Use.set, (f.SLOW_PROXY,), "by its variable: a proxy may take long to start")
MODELS = Name("ray.llm._internal.serve.core.ingress.ingress", "OpenAiIngress.models", Use.overridden, (f.SERVE_FRONT,), "/v1/models with vLLM's fields", "self")
MODEL_DATA = Name("ray.llm._internal.serve.core.ingress.ingress", "OpenAiIngress.model_data", Use.overridden, (f.SERVE_FRONT,), "the same for one model", "self, model")
MODEL_ID = Name("ray.llm._internal.serve.core.ingress.ingress", "OpenAiIngress._get_model_id", Use.overridden, (f.SERVE_FRONT,), "models with a colon in their name; 404 as vLLM's", "self, model")
MODEL_HANDLE = Name("ray.llm._internal.serve.core.ingress.ingress", "OpenAiIngress._get_configured_serve_handle", Use.overridden, (f.SERVE_FRONT,), "models with a colon in their name", "self, model_id")
RESPONSE = Name("ray.llm._internal.serve.core.ingress.ingress", "OpenAiIngress._get_response", Use.overridden, (f.SERVE_FRONT,), "bounds on requests; a second try", None, ("body", "call_method", "raw_request"))
ENGINE_CLIENT = Name("ray.llm._internal.serve.engines.vllm.vllm_engine", "VLLMEngine._engine_client", Use.read, (f.SERVE_FRONT,), "probe the engine itself")
LLM_ENGINE_MODULE = Name("ray.llm._internal.serve.engines.vllm.vllm_engine", "", Use.imported, (f.PRELOAD,), "what a service's replica runs")
REPLICA_MODULE = Name("ray.serve._private.replica", "", Use.imported, (f.PRELOAD,), "what a service's replica runs")

TOKENIZER = Name("tokenizers", "ByteLevelBPETokenizer._tokenizer", Use.read, (f.TINY_MODELS,), "hand a trained tokenizer to transformers")
# fmt: on

# What vLLM logs: timeline/
LOADED = Line("Directly load AOT compilation from path", (f.LOG,))
BEGUN = Line("Starting torch.compile", (f.LOG,), since=(0, 32))
SAVED = Line("saved AOT compiled function to", (f.LOG,))
AGAIN = Line("Compiling model again due to a load failure from", (f.LOG,))

# Modules that Ray Serve LLM imports by the name they had before: serve/
MOVED = {"vllm.entrypoints.launchers.cli_args": "vllm.entrypoints.common.cli_args"}  # 0.33, of Ray 2.60

LINES: tuple[Line, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Line))
TABLE: tuple[Name, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Name))
