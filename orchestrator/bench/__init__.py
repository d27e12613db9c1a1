"""Benchmarks that anyone can rerun: one file each; every figure is a ratio's worth of one run."""

from __future__ import annotations

import importlib
from dataclasses import replace

from orchestrator.bench.result import BenchResult
from orchestrator.cluster import speed
from orchestrator.config import AppConfig
from orchestrator.progress import Say

__all__ = ["BenchResult", "execute"]


def execute(app: AppConfig, say: Say) -> BenchResult:
    """Run the benchmark that `app.bench.kind` names: the module of that name in this package.

    Raises:
        ConfigError: the configuration does not fit the benchmark.
        OrchestratorError: a replica did not come up.
    """
    how_fast = speed.measured()  # before the benchmark makes the machine busy
    module = importlib.import_module(f"orchestrator.bench.{app.bench.kind.value}")
    found: BenchResult = module.measure(app, say)
    return replace(found, machine={**found.machine, "speed": how_fast})
