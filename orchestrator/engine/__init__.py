"""Engines: one contract, real vLLM behind it, and a fake for tests. The only place that imports vLLM."""

from __future__ import annotations

from orchestrator.config import EngineKind
from orchestrator.engine.contract import Chunk, CompileKey, Engine, EngineSpec, Sampling

__all__ = ["Chunk", "CompileKey", "Engine", "EngineSpec", "Sampling", "create"]


def create(kind: EngineKind, spec: EngineSpec) -> Engine:
    """Make an engine of a kind; imports vLLM only in `prepare`, so that this is instant."""
    if kind is EngineKind.fake:
        from orchestrator.engine.fake import FakeEngine

        return FakeEngine(spec)
    from orchestrator.engine.vllm.engine import VllmEngine

    return VllmEngine(spec)
