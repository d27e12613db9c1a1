"""Models: a configuration names one, and gets a folder or a hub id that vLLM loads."""

from orchestrator.models.size import size_of
from orchestrator.models.sources import resolve

__all__ = ["resolve", "size_of"]
