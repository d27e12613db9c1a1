"""Load that does not wait for answers: requests come when they come, as from many people."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

import httpx

from orchestrator.serve.launch import Service

_PATIENCE_S = 600.0  # what an overloaded service may take


@dataclass(frozen=True)
class Ask:
    """One request: when it comes, in seconds since the load began, and how many tokens it asks for."""

    at: float
    tokens: int


def ask(service: Service, asked: Sequence[Ask]) -> list[float | None]:
    """Send all of them, each at its time; for each one the seconds until its whole answer; None: it failed."""
    return asyncio.run(_all(service, asked))


async def _all(service: Service, asked: Sequence[Ask]) -> list[float | None]:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=100)
    async with httpx.AsyncClient(base_url=service.address, timeout=_PATIENCE_S, limits=limits) as client:
        began = time.monotonic()
        return await asyncio.gather(*(_one(client, service.models[0], each, began) for each in asked))


async def _one(client: httpx.AsyncClient, model: str, each: Ask, began: float) -> float | None:
    await asyncio.sleep(max(0.0, began + each.at - time.monotonic()))
    sent = time.monotonic()
    try:
        body = {"model": model, "prompt": "The sea is", "max_tokens": each.tokens}
        answer = await client.post("/v1/completions", json=body)
    except httpx.HTTPError:
        return None
    return time.monotonic() - sent if answer.status_code == 200 else None
