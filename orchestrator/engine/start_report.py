"""How a start went."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from orchestrator import timeline
from orchestrator.graph_cache.restore_result import Receipt
from orchestrator.timeline.forecast import Size


@dataclass(frozen=True)
class StartReport:
    """A finished start.

    Attributes:
        first_token_s: seconds until the first token of a probe, since the start was asked for.
        phases: where they went; their lengths add up to first_token_s.
        after_s: seconds from the first token to the report: publishing.
        size: what it had to bring up; None: not known.
        model_files: how they came to the node, with the fields of `weights.transfer.Brought`; None: they were there.
    """

    replica: str
    first_token_s: float
    receipt: Receipt
    facts: timeline.EngineFacts
    phases: tuple[timeline.Phase, ...]
    pid: int
    after_s: float = 0.0
    size: Size | None = None
    model_files: Mapping[str, Any] | None = None

    def since_request(self, placement_s: float, whole_s: float, ahead_s: float = 0.0) -> StartReport:
        """The same, counted from the request, which another node's clock measured: only durations are compared.

        Args:
            placement_s: seconds until the replica's place was there.
            whole_s: seconds until this report was there.
            ahead_s: seconds in which graphs were compiled in its place, while the weights travelled.
        """
        here = self.first_token_s
        process_s = max(0.0, whole_s - self.after_s - here - placement_s - ahead_s)
        known = {"placement": placement_s, "compile ahead": ahead_s, "process": process_s}
        before, shift = [], 0.0
        for name, seconds in known.items():
            if seconds or name != "compile ahead":
                before.append(timeline.Phase(name, shift, seconds))
            shift += seconds
        moved = tuple(timeline.Phase(p.name, p.start + shift, p.seconds) for p in self.phases)
        return replace(self, first_token_s=here + shift, phases=(*before, *moved))

    def as_dict(self) -> dict[str, Any]:
        """A JSON-ready copy."""
        return {
            "replica": self.replica,
            "first_token_s": round(self.first_token_s, 3),
            "receipt": self.receipt.as_dict(),
            "engine": self.facts.as_dict(),
            "pid": self.pid,
            "size": asdict(self.size) if self.size else None,
            "model_files": dict(self.model_files) if self.model_files else None,
            "phases": [asdict(phase) for phase in self.phases],
        }
