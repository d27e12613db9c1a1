"""The bounds of single settings, as a table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from orchestrator.errors import ConfigError

# setting -> (is it right?, what it has to be)
BOUNDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "replicas": (lambda v: v >= 1, "at least 1"),
    "engine.tensor_parallel_size": (lambda v: v >= 1, "at least 1"),
    "engine.max_num_seqs": (lambda v: v >= 1, "at least 1"),
    "engine.max_num_batched_tokens": (lambda v: v >= 1, "at least 1"),
    "engine.kv_cache_gib": (lambda v: v is None or v > 0, "above 0, or null"),
    "engine.gpu_memory_utilization": (lambda v: 0 < v <= 1, "in (0, 1]"),
    "engine.cpus_per_rank": (lambda v: v > 0, "above 0"),
    "engine.start_timeout_s": (lambda v: v > 0, "above 0 seconds"),
    "cold_start.prefetch_nodes": (lambda v: v >= 0, "at least 0"),
    "graph_cache.wait_timeout_s": (lambda v: v > 0, "above 0 seconds"),
    "graph_cache.lease_s": (lambda v: v > 0, "above 0 seconds"),
    "graph_cache.max_artifact_mib": (lambda v: v >= 1, "at least 1"),
    "graph_cache.max_files": (lambda v: v >= 1, "at least 1"),
    "graph_cache.max_served_mib": (lambda v: v >= 1, "at least 1"),
    "graph_cache.max_node_mib": (lambda v: v >= 1, "at least 1"),
    "weights.max_gib": (lambda v: v > 0, "above 0"),
    "weights.piece_mib": (lambda v: v >= 1, "at least 1"),
    "weights.in_flight_mib": (lambda v: v >= 2, "at least 2"),
    "weights.origin_readers": (lambda v: v >= 1, "at least 1"),
    "weights.piece_timeout_s": (lambda v: v > 0, "above 0 seconds"),
    "cluster.object_store_mib": (lambda v: v >= 80, "at least 80 (Ray's minimum)"),
    "cluster.placement_strategy": (
        lambda v: v in {"PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"},
        "one of PACK, SPREAD, STRICT_PACK, STRICT_SPREAD",
    ),
    "workload.max_tokens": (lambda v: v >= 1, "at least 1"),
    "workload.concurrency": (lambda v: v >= 1, "at least 1"),
    "bench.modes": (lambda v: len(v) >= 1, "a list of at least one mode"),
    "bench.layers": (lambda v: len(v) >= 1 and min(v) >= 1, "a list of depths of at least 1"),
    "bench.formats": (lambda v: len(v) >= 1, "a list of at least one load format"),
    "bench.rounds": (lambda v: v >= 1, "at least 1"),
    "bench.nodes": (lambda v: len(v) >= 1 and min(v) >= 1, "a list of numbers of at least 1"),
    "bench.replicas_per_node": (lambda v: v >= 1, "at least 1"),
    "bench.cores_per_node": (lambda v: v >= 1, "at least 1"),
    "bench.origin_mb_per_s": (lambda v: v >= 0, "at least 0"),
    "bench.simulated_nodes": (lambda v: min(v, default=1) >= 1, "a list of numbers of at least 1"),
    "bench.simulated_gb": (lambda v: v > 0, "above 0"),
    "bench.simulated_node_mb_per_s": (lambda v: v > 0, "above 0"),
    "bench.simulated_origin_mb_per_s": (lambda v: v > 0, "above 0"),
    "bench.boot_s": (lambda v: v >= 0, "at least 0 seconds"),
    "bench.starts_s": (lambda v: len(v) >= 1 and min(v) > 0, "a list of times above 0 seconds"),
    "batch.concurrency": (lambda v: v >= 1, "at least 1"),
    "batch.workers": (lambda v: v >= 1, "at least 1"),
    "batch.retries": (lambda v: v >= 0, "at least 0"),
    "batch.timeout_s": (lambda v: v > 0, "above 0 seconds"),
    "sweep.retries": (lambda v: v >= 0, "at least 0"),
    "sweep.parallel": (lambda v: v >= 1, "at least 1"),
    "sweep.deadline_s": (lambda v: v is None or v > 0, "above 0 seconds, or null"),
    "serve.port": (lambda v: 0 < v < 65536, "in 1..65535"),
    "serve.route_prefix": (lambda v: v == "/" or (v.startswith("/") and not v.endswith("/")), "/ or /NAME"),
    "serve.min_replicas": (lambda v: v >= 0, "at least 0"),
    "serve.max_replicas": (lambda v: v >= 1, "at least 1"),
    "serve.target_ongoing_requests": (lambda v: v > 0, "above 0"),
    "serve.upscale_delay_s": (lambda v: v >= 0, "at least 0 seconds"),
    "serve.downscale_delay_s": (lambda v: v >= 0, "at least 0 seconds"),
    "serve.start_s": (lambda v: v > 0, "above 0 seconds"),
    "serve.ingress_replicas": (lambda v: v >= 1, "at least 1"),
    "serve.max_held": (lambda v: v >= 0, "at least 0"),
    "serve.max_body_kib": (lambda v: v >= 1, "at least 1"),
    "serve.max_n": (lambda v: v >= 1, "at least 1"),
    "serve.max_choices": (lambda v: v >= 1, "at least 1"),
    "serve.health_period_s": (lambda v: v > 0, "above 0 seconds"),
    "serve.health_timeout_s": (lambda v: v > 0, "above 0 seconds"),
    "serve.drain_s": (lambda v: v > 0, "above 0 seconds"),
    "workload.prompts": (lambda v: len(v) >= 1, "a list of at least one prompt"),
}


def check(app: Any) -> None:
    """Check every bound of a configuration.

    Raises:
        ConfigError: a value is out of bounds; `where` names the setting.
    """
    for where, (ok, rule) in BOUNDS.items():
        value = app
        for part in where.split("."):
            value = getattr(value, part)
        if not ok(value):
            raise ConfigError(f"{where}={value!r} has to be {rule}.", where=where)
