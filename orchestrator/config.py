"""Hydra schemas: what a user may set, with types and defaults, and the checks that need no cluster.

The dataclasses stay mutable (Hydra overrides frozen ones no longer); `plan.py` freezes what runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf

from orchestrator.errors import ConfigError


class ModelSource(Enum):
    """Where a model's folder comes from."""

    path = "path"
    hub = "hub"
    smollm2 = "smollm2"
    tiny = "tiny"


class EngineKind(Enum):
    """Which implementation of the engine contract runs."""

    vllm = "vllm"
    fake = "fake"


class Device(Enum):
    """What a replica runs on."""

    cpu = "cpu"
    gpu = "gpu"


class KvUpdate(Enum):
    """How a compiled graph names the layer in its KV-cache update; see docs/layer_index.md."""

    layer_index = "layer_index"
    layer_name = "layer_name"
    split = "split"
    inline = "inline"


class ClusterKind(Enum):
    """Start a Ray of our own, or join one."""

    local = "local"
    existing = "existing"


@dataclass
class ModelConfig:
    """One model. Sizes are read from its config.json unless `source` is tiny."""

    name: str = MISSING
    source: ModelSource = ModelSource.path
    id: str = ""  # hub id or folder
    revision: str | None = None
    trust_remote_code: bool = False
    dtype: str = "auto"
    max_model_len: int | None = None
    chat: bool = False
    # Only for source=tiny: a Hugging Face config (model_type and sizes), and the seed of its weights.
    tiny: dict[str, Any] = field(default_factory=dict)
    seed: int = 0


@dataclass
class EngineConfig:
    """vLLM engine settings that every mode shares, stock included."""

    kind: EngineKind = EngineKind.vllm
    device: Device = Device.cpu
    tensor_parallel_size: int = 1
    max_num_seqs: int = 8
    max_num_batched_tokens: int = 2048
    kv_cache_gib: float | None = 0.5  # None: vLLM sizes it by gpu_memory_utilization
    gpu_memory_utilization: float = 0.9
    cpus_per_rank: float = 1.0
    enforce_eager: bool = False
    enable_prefix_caching: bool = True
    seed: int = 0
    start_timeout_s: float = 600.0
    extra: dict[str, Any] = field(default_factory=dict)  # further vLLM AsyncEngineArgs, by name


@dataclass
class ColdStartConfig:
    """What `fast_cold_start: true` switches on."""

    kv_update: KvUpdate = KvUpdate.layer_index
    trace_once: bool = True  # Dynamo traces one layer of each kind, and stamps out the others
    share_graphs: bool = True
    quick_cpu_probe: bool = True  # with preload: ask the compiler for its flags, build no programs to see what runs
    preload: bool = True  # fork the engine's processes from a server that imports vLLM while the replica does


@dataclass
class GraphCacheConfig:
    """The cluster's compiled-graph cache."""

    store: str = "${state_dir}/graphs"  # folder or pyarrow.fs URI (s3://, gs://)
    key_file: str = "${state_dir}/signing.key"
    wait_timeout_s: float = 600.0
    lease_s: float = 30.0
    max_artifact_mib: int = 2048
    max_files: int = 20000
    max_served_mib: int = 1024  # of the object store, for what the registry serves
    node_folder: str = "${state_dir}/installed"  # a node's replicas share what is installed here
    max_node_mib: int = 4096


@dataclass
class ClusterConfig:
    """The Ray cluster."""

    kind: ClusterKind = ClusterKind.local
    address: str | None = None  # None with kind=existing: RAY_ADDRESS, else "auto"
    namespace: str = "orchestrator"
    num_cpus: int | None = None
    num_gpus: int | None = None
    object_store_mib: int = 256
    placement_strategy: str = "PACK"
    placement_timeout_s: float = 120.0


@dataclass
class WorkloadConfig:
    """What replicas are asked, greedily, so that answers can be compared token by token."""

    prompts: list[str] = field(default_factory=list)
    max_tokens: int = 24
    concurrency: int = 8


class BenchKind(Enum):
    """Which benchmark `jobs/bench.py` runs."""

    depth = "depth"
    startup = "startup"
    throughput = "throughput"
    cache = "cache"


@dataclass
class BenchConfig:
    """What a benchmark varies."""

    kind: BenchKind = BenchKind.depth
    modes: list[KvUpdate] = field(default_factory=lambda: list(KvUpdate))
    layers: list[int] = field(default_factory=lambda: [4, 16, 32])
    rounds: int = 5  # paired repetitions of a timing
    batch: int = 8  # prompts asked at once
    tokens: int = 64  # generated for each
    sizes_mib: list[int] = field(default_factory=lambda: [10, 1024])  # of artifacts
    repeat: int = 1  # batches of prompts for one timing of the prefill


@dataclass
class AppConfig:
    """The whole configuration of a run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    cold_start: ColdStartConfig = field(default_factory=ColdStartConfig)
    graph_cache: GraphCacheConfig = field(default_factory=GraphCacheConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    workload: WorkloadConfig = field(default_factory=WorkloadConfig)
    bench: BenchConfig = field(default_factory=BenchConfig)
    fast_cold_start: bool = True
    replicas: int = 2
    state_dir: str = "${oc.env:ORCHESTRATOR_HOME,${oc.env:HOME}/.cache/orchestrator}"


ConfigStore.instance().store(name="schema", node=AppConfig)

# setting -> (is it right?, what it has to be)
_BOUNDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "replicas": (lambda v: v >= 1, "at least 1"),
    "engine.tensor_parallel_size": (lambda v: v >= 1, "at least 1"),
    "engine.max_num_seqs": (lambda v: v >= 1, "at least 1"),
    "engine.max_num_batched_tokens": (lambda v: v >= 1, "at least 1"),
    "engine.kv_cache_gib": (lambda v: v is None or v > 0, "above 0, or null"),
    "engine.gpu_memory_utilization": (lambda v: 0 < v <= 1, "in (0, 1]"),
    "engine.cpus_per_rank": (lambda v: v > 0, "above 0"),
    "engine.start_timeout_s": (lambda v: v > 0, "above 0 seconds"),
    "graph_cache.wait_timeout_s": (lambda v: v > 0, "above 0 seconds"),
    "graph_cache.lease_s": (lambda v: v > 0, "above 0 seconds"),
    "graph_cache.max_artifact_mib": (lambda v: v >= 1, "at least 1"),
    "graph_cache.max_files": (lambda v: v >= 1, "at least 1"),
    "graph_cache.max_served_mib": (lambda v: v >= 1, "at least 1"),
    "graph_cache.max_node_mib": (lambda v: v >= 1, "at least 1"),
    "cluster.object_store_mib": (lambda v: v >= 80, "at least 80 (Ray's minimum)"),
    "cluster.placement_strategy": (
        lambda v: v in {"PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"},
        "one of PACK, SPREAD, STRICT_PACK, STRICT_SPREAD",
    ),
    "workload.max_tokens": (lambda v: v >= 1, "at least 1"),
    "workload.concurrency": (lambda v: v >= 1, "at least 1"),
    "bench.modes": (lambda v: len(v) >= 1, "a list of at least one mode"),
    "bench.layers": (lambda v: len(v) >= 1 and min(v) >= 1, "a list of depths of at least 1"),
    "bench.rounds": (lambda v: v >= 1, "at least 1"),
    "workload.prompts": (lambda v: len(v) >= 1, "a list of at least one prompt"),
}


def load(cfg: Any) -> AppConfig:
    """Turn a composed DictConfig into typed dataclasses and check every bound.

    Raises:
        ConfigError: a value is missing, of the wrong type or out of bounds; `where` names the setting.
    """
    try:
        app = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(AppConfig), cfg))
    except Exception as error:
        raise ConfigError(" ".join(str(error).split()), where=getattr(error, "full_key", "") or "") from error
    if not isinstance(app, AppConfig):
        raise ConfigError("The configuration is not a mapping of the known groups.", where="")
    for where, (ok, rule) in _BOUNDS.items():
        value: Any = app
        for part in where.split("."):
            value = getattr(value, part)
        if not ok(value):
            raise ConfigError(f"{where}={value!r} has to be {rule}.", where=where)
    if app.model.source in (ModelSource.path, ModelSource.hub) and not app.model.id:
        raise ConfigError("model.id is empty.", where="model.id", hint="Give a folder or a hub id.")
    if app.model.source is ModelSource.tiny and "model_type" not in app.model.tiny:
        raise ConfigError("model.tiny needs a model_type.", where="model.tiny", hint="For example llama.")
    return app
