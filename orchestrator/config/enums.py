"""Settings that are one of several."""

from __future__ import annotations

from enum import Enum


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


class BatchEngine(Enum):
    """Who asks a service a batch's requests: the driver, or actors of a Ray Data pipeline."""

    serve = "serve"
    ray_data = "ray_data"


class Autoscaling(Enum):
    """When a service's replicas are asked for: when the load is there, or a start's time before."""

    reactive = "reactive"
    ahead = "ahead"


class ProxyLocation(Enum):
    """Which nodes of a cluster take a service's requests. Names and meanings are Ray Serve's."""

    HeadOnly = "HeadOnly"
    EveryNode = "EveryNode"  # that has a replica


class BenchKind(Enum):
    """Which benchmark `jobs/bench.py` runs."""

    depth = "depth"
    startup = "startup"
    throughput = "throughput"
    cache = "cache"
    scaleup = "scaleup"
    serving = "serving"
    soak = "soak"
    contention = "contention"
    simulate = "simulate"
    autoscale = "autoscale"
    autoscale_check = "autoscale_check"
    weights = "weights"
    loaders = "loaders"
    all = "all"
