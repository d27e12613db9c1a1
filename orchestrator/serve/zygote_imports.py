"""What a node's zygote imports for a service: an engine's modules, and Ray Serve LLM's."""

from orchestrator import compat
from orchestrator.compat import table
from orchestrator.engine.vllm import device_answers

with device_answers.imports_without_a_device():
    import orchestrator.serve.ingress
    import orchestrator.serve.server  # noqa: F401
    from orchestrator.engine.vllm import serve_hook
    from orchestrator.engine.vllm.zygote_imports import at_birth

    for module in (table.LLM_ENGINE_MODULE, table.REPLICA_MODULE):
        compat.load(module)
    serve_hook.import_api()
compat.check()

__all__ = ["at_birth"]
