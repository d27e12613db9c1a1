"""Benchmarks that anyone can rerun: one file each; every figure is a ratio's worth of one run."""

from __future__ import annotations

from orchestrator.bench import cache, depth, startup, throughput
from orchestrator.bench.result import BenchResult
from orchestrator.config import AppConfig, BenchKind
from orchestrator.run import Say

__all__ = ["BenchResult", "execute"]

_KINDS = {
    BenchKind.depth: depth.measure,
    BenchKind.startup: startup.measure,
    BenchKind.throughput: throughput.measure,
    BenchKind.cache: cache.measure,
}


def execute(app: AppConfig, say: Say) -> BenchResult:
    """Run the benchmark that `app.bench` names.

    Raises:
        ConfigError: the configuration does not fit the benchmark.
        OrchestratorError: a replica did not come up.
    """
    return _KINDS[app.bench.kind](app, say)
