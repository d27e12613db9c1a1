"""What a node's zygote imports for a service: an engine's modules, and Ray Serve LLM's."""

import ray.llm._internal.serve.engines.vllm.vllm_engine
import ray.serve._private.replica  # noqa: F401

import orchestrator.serve.ingress
import orchestrator.serve.server  # noqa: F401
from orchestrator.engine.vllm import serve_hook
from orchestrator.engine.vllm.zygote_imports import at_birth

serve_hook.import_api()

__all__ = ["at_birth"]
