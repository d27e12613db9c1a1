"""What the graph cache did for a start, for reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any


class Outcome(Enum):
    """How a start got its graphs."""

    hit = "hit"  # vLLM loaded the shared artifact, and compiled nothing
    compiled = "compiled"
    waited = "waited"  # a hit, after waiting for the replica that compiled
    unused = "unused"  # restored, yet vLLM compiled again
    refused = "refused"  # the artifact was not authentic or not safe; compiled instead
    failed = "failed"  # the cache failed (store, registry, disk); compiled instead
    stock = "stock"  # plain vLLM, no shared graphs asked for


@dataclass(frozen=True)
class Receipt:
    """What the graph cache did for one start, in the end judged by what vLLM itself reported.

    Attributes:
        source: of a hit: "node" (installed there already), "memory" (the object store), "store" (durable).
        kv_tokens: room in the KV cache of the replica that compiled; 0: not known, or this is the one.
        notes: what of ours was off in this start, and why; see compat.
        kernels: by the name of a kernel cache: how many folders of it were `brought` with the graphs, how many this
            start `made`, and `why` none was brought; see kernel_caches.
    """

    outcome: Outcome
    reason: str = ""
    key: str = ""
    generation: int = 0
    bytes: int = 0
    seconds: float = 0.0
    waited_s: float = 0.0
    published: bool = False
    source: str = ""
    nearest: tuple[str, ...] = ()
    kv_tokens: int = 0
    notes: tuple[str, ...] = ()
    kernels: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def restored(self) -> bool:
        """Graphs were installed; whether vLLM loads them is another matter."""
        return self.outcome in (Outcome.hit, Outcome.waited)

    def as_dict(self) -> dict[str, Any]:
        """A JSON-ready copy."""
        return {**asdict(self), "outcome": self.outcome.value, "nearest": list(self.nearest), "notes": list(self.notes)}
