"""What every engine has to do; the fake and real vLLM run this same suite."""

from __future__ import annotations

import pytest

from orchestrator.engine import Engine, Sampling
from orchestrator.errors import EngineDeadError

PROMPTS = ["The capital of France is", "Hello, my name is"]


async def collect(engine: Engine, prompt: str, max_tokens: int, request: str) -> tuple[list[int], str, str | None]:
    tokens: list[int] = []
    text, reason = "", None
    async for chunk in engine.generate(prompt, Sampling(max_tokens=max_tokens, ignore_eos=True), request):
        tokens.extend(chunk.token_ids)
        text, reason = text + chunk.text, chunk.finish_reason
    return tokens, text, reason


async def check_serving(engine: Engine) -> None:
    """A started engine answers, in pieces, the same way each time, several at once."""
    await engine.check_health()
    pieces = [c async for c in engine.generate(PROMPTS[0], Sampling(max_tokens=5, ignore_eos=True), "stream")]
    assert len(pieces) > 1
    assert [p.finish_reason for p in pieces[:-1]] == [None] * (len(pieces) - 1)
    assert pieces[-1].finish_reason == "length"
    again, _, reason = await collect(engine, PROMPTS[0], 5, "again")
    assert again == [t for p in pieces for t in p.token_ids]
    assert len(again) == 5
    assert reason == "length"
    other, _, _ = await collect(engine, PROMPTS[1], 5, "other")
    assert other != again


async def check_stopping(engine: Engine) -> None:
    """A stopped engine says so, at once, and may be stopped again."""
    await engine.stop()
    with pytest.raises(EngineDeadError):
        await engine.check_health()
    await engine.stop()
