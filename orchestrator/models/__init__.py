"""Models: a configuration names one, and gets a folder or a hub id that vLLM loads."""

from orchestrator.models.sources import attention_shape, resolve

__all__ = ["attention_shape", "resolve"]
