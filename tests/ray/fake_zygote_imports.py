"""What the zygote of replicas with the fake engine imports: as engine/vllm/zygote_imports.py, without vLLM."""

import ray._private.workers.default_worker  # noqa: F401

import orchestrator.engine.fake
import orchestrator.fleet.replica  # noqa: F401


def at_birth() -> None:
    """Nothing: no process follows."""
