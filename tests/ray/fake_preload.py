"""A zygote's preload module for replicas with the fake engine: as orchestrator/engine/preloaded.py, without vLLM."""

import ray._private.workers.default_worker  # noqa: F401

import orchestrator.engine.fake
import orchestrator.replica  # noqa: F401


def at_birth() -> None:
    """Nothing: no process follows."""
