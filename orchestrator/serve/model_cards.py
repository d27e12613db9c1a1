"""What `/v1/models` says of a model: as `vllm serve` says it, with what Ray Serve LLM says besides.

Ray's list has no `created`, which OpenAI's clients in typed languages ask for, no `root`, which `vllm bench serve`
takes for the tokenizer, and no `max_model_len`.
"""

from __future__ import annotations

import time
from typing import Any

from pydantic import BaseModel


class Card(BaseModel):
    """One model. The fields are vLLM's `ModelCard`'s; `metadata` is Ray's."""

    id: str
    object: str = "model"
    created: int
    owned_by: str
    root: str | None
    parent: str | None
    max_model_len: int | None
    permission: list[Any] = []
    metadata: dict[str, Any]


class CardList(BaseModel):
    """All models."""

    object: str = "list"
    data: list[Card]


def facts(source: str) -> dict[str, Any]:
    """What Ray's own card has to carry in its metadata for `card`.

    Args:
        source: what vLLM is given as `model`.
    """
    return {"root": source, "created": int(time.time())}


def card(ray_card: Any) -> Card:
    """The card of a model, or of a LoRA adapter, out of Ray's `ModelCard`."""
    metadata = dict(ray_card.metadata)
    root, created, model = metadata.pop("root", None), metadata.pop("created", 0), metadata["model_id"]
    return Card(
        id=ray_card.id,
        created=created,
        owned_by=ray_card.owned_by,
        root=root,
        parent=None if model == ray_card.id else model,
        max_model_len=metadata["max_request_context_length"],
        permission=ray_card.permission,
        metadata=metadata,
    )
