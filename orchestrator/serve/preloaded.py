"""What a node's zygote imports for a service: an engine's modules, and Ray Serve LLM's."""

import ray.llm._internal.serve.engines.vllm.vllm_engine
import ray.serve._private.replica  # noqa: F401

import orchestrator.serve.ingress
import orchestrator.serve.server  # noqa: F401
from orchestrator.engine import shared_llm
from orchestrator.engine.preloaded import at_birth

shared_llm.import_api()

__all__ = ["at_birth"]
