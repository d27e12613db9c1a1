"""Groups of settings, with types and defaults.

The dataclasses stay mutable (Hydra overrides frozen ones no longer); `plan.py` freezes what runs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from orchestrator.config.enums import (
    Autoscaling,
    BatchEngine,
    BenchKind,
    ClusterKind,
    Device,
    EngineKind,
    KvUpdate,
    ModelSource,
    ProxyLocation,
)


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
    # Only for source=tiny: a Hugging Face config (model_type and sizes), and the seed of its weights; without weights
    # vLLM makes up its own when it loads, for shapes that are too large to write down.
    weights: bool = True
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
    load_format: str = "auto"  # vLLM's name of the loader of weights; see load_formats.py
    start_timeout_s: float = 600.0
    extra: dict[str, Any] = field(default_factory=dict)  # further vLLM AsyncEngineArgs; see extra.py


@dataclass
class ColdStartConfig:
    """What `fast_cold_start: true` switches on."""

    kv_update: KvUpdate = KvUpdate.layer_index
    trace_once: bool = True  # Dynamo traces one layer of each kind, and stamps out the others
    share_graphs: bool = True
    share_kernels: bool = True  # on GPUs, with share_graphs: Triton's kernels, tuning results, ... travel with graphs
    quick_cpu_probe: bool = True  # with preload: ask the compiler for its flags, build no programs to see what runs
    short_profile: bool = True  # with preload, on CPU: graphs restored, KV-cache size set: profile a few tokens only
    overlap: bool = True  # with preload: the tokenizer is read while the engine's processes start
    prestart_worker: bool = True  # with preload: a Ray worker waits on each node for the replica that starts there next
    share_weights: bool = False  # a model's origin is read once; nodes get its files from each other; see WeightsConfig
    prefetch_nodes: int = 8  # made ready ahead of replicas: vLLM imported, newest graphs installed; 0: none
    preload: bool = True  # fork replicas and their engine's processes from one process per node that imported vLLM


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
    node_folder: str = "${state_dir}/installed"  # shared by a node's replicas; `$NAME` is the node's own
    max_node_mib: int = 4096


@dataclass
class WeightsConfig:
    """Bounds for `cold_start.share_weights`."""

    folder: str = "${state_dir}/weights"  # where each node keeps models; `$NAME` is the node's own
    max_gib: float = 500.0  # of models that a node keeps: the least recently used goes first, and none in use
    piece_mib: int = 16  # what is sent at a time, and checked as one; of large models several of these are
    in_flight_mib: int = 128  # of a node's object store, for what comes and goes
    origin_readers: int = 16  # pieces that the cluster reads from the origin at a time
    piece_timeout_s: float = 60.0  # then a piece is asked for elsewhere; several times as long for a large one


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


@dataclass
class SuiteEntry:
    """One benchmark of a suite: its overrides, and how many GPUs it needs; in them `{gpus}` is how many there are."""

    run: list[str] = field(default_factory=list)
    gpus: int = 0
    minutes: int = 0  # that it takes, roughly; 0: not known


@dataclass
class BenchConfig:
    """What a benchmark varies."""

    kind: BenchKind = BenchKind.depth
    modes: list[KvUpdate] = field(default_factory=lambda: list(KvUpdate))
    layers: list[int] = field(default_factory=lambda: [4, 16, 32])
    rounds: int = 5  # paired repetitions of a timing
    skip: list[str] = field(default_factory=list)  # ways to start that kind=startup leaves out
    formats: list[str] = field(default_factory=lambda: ["auto", "runai_streamer"])  # of kind=loaders
    batch: int = 8  # prompts asked at once
    tokens: int = 64  # generated for each
    sizes_mib: list[int] = field(default_factory=lambda: [10, 1024])  # of artifacts
    repeat: int = 1  # batches of prompts for one timing of the prefill
    seconds: float = 30.0  # of load on a service
    nodes: list[int] = field(default_factory=lambda: [10, 100, 1000])  # of a simulated cluster
    replicas_per_node: int = 10
    cores_per_node: int = 16
    origin_mb_per_s: float = 200.0  # what a model's origin sends, all readers together; 0: as fast as it goes
    simulated_nodes: list[int] = field(default_factory=lambda: [8, 100, 1000])  # of kind=weights
    simulated_gb: float = 140.0  # of their model
    simulated_node_mb_per_s: float = 3000.0  # what a node of theirs sends, and gets
    simulated_origin_mb_per_s: float = 10000.0
    boot_s: float = 0.0  # until a simulated node is there
    starts_s: list[float] = field(default_factory=lambda: [5.0, 30.0, 120.0])  # of a simulated service's replicas
    suite: list[SuiteEntry] = field(default_factory=list)  # of kind=all
    minutes: float | None = None  # that a suite may take; what does not fit is left out, and named
    offline: dict[str, str] = field(default_factory=dict)  # models that stand in for the hub's where it does not answer


@dataclass
class BatchConfig:
    """What `jobs/batch.py` asks, and where the answers go."""

    input: str = ""  # JSONL in OpenAI's batch format; with engine=ray_data Parquet too, and any number of files
    output: str = ""  # empty: beside the input, as NAME.answers.jsonl; with engine=ray_data the folder NAME.answers
    engine: BatchEngine = BatchEngine.serve
    workers: int = 1  # with engine=ray_data: actors that ask, each `concurrency` at a time
    errors: str = ""  # a file of its own for requests that failed; empty: they are in the output
    url: str | None = None  # of a service that runs, its key in OPENAI_API_KEY; None: start one for the batch
    model: str | None = None  # asked of every request, whatever its line names
    concurrency: int = 64  # requests at a time
    retries: int = 8  # of a request, while the service is overloaded or not there: for a minute or so
    timeout_s: float = 600.0  # for one answer


@dataclass
class WarmConfig:
    """What `jobs/warm.py` compiles with."""

    weights: bool = False  # the model's own, where its graphs do not need them; false: none is read, vLLM makes some up


@dataclass
class SweepConfig:
    """How a multirun treats its cells; each runs in a process of its own."""

    retries: int = 0  # of a cell that failed, unless its configuration is wrong
    deadline_s: float | None = None  # for each attempt
    resume: bool = False  # with hydra.sweep.dir=...: cells that ran well there are not run again
    parallel: int = 1  # cells at a time, each with cores of its own; not where timings are to be compared
    objective: str | None = None  # for a sweeper that optimises: a figure of the RESULT line, as first_token_s.second


@dataclass
class ServeModelConfig:
    """What one model of several has for itself; None takes the value that all models share."""

    min_replicas: int | None = None
    max_replicas: int | None = None
    frontend: dict[str, Any] | None = None


@dataclass
class ServeConfig:
    """An OpenAI-compatible service. Autoscaling settings have Ray Serve's names and meanings."""

    host: str = "127.0.0.1"
    port: int = 8000
    proxy_location: ProxyLocation = ProxyLocation.EveryNode  # that have a replica, or the head alone
    name: str = "orchestrator"  # of the Ray Serve application
    route_prefix: str = "/"  # before /v1, where other applications share the cluster's Ray Serve
    models: dict[str, ServeModelConfig] = field(default_factory=dict)  # names of model/*.yaml; empty: `model` alone
    min_replicas: int = 1
    max_replicas: int = 1
    target_ongoing_requests: float = 4.0
    upscale_delay_s: float = 5.0
    downscale_delay_s: float = 120.0
    autoscaling: Autoscaling = Autoscaling.reactive  # Ray Serve's own policy, or ours, which looks ahead
    start_s: float = 60.0  # how long a start takes, until one was seen: for autoscaling=ahead, and for Retry-After
    ingress_replicas: int = 1  # of the front, which checks keys and bounds and passes answers on
    max_held: int = 1000  # requests that wait for a model's first replica; the others are told to come back (429)
    api_keys_file: str | None = None  # a key a line; None: no keys, on loopback only
    frontend: dict[str, Any] = field(default_factory=dict)  # tool_call_parser, ...: with the names of `vllm serve`
    max_body_kib: int = 1024
    max_n: int = 16  # answers to one prompt
    max_choices: int = 128  # answers to one request: prompts times n
    health_period_s: float = 5.0
    health_timeout_s: float = 20.0  # for a probe of one token, where no request has got a token lately
    drain_s: float = 60.0  # for accepted requests, when a replica goes; what is left then ends with an error
