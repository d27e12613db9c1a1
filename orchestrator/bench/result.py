"""What every benchmark returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class BenchResult:
    """A benchmark's outcome: `summary` for scripts, `rows` for the table."""

    kind: str
    summary: dict[str, Any]
    rows: list[dict[str, Any]]
    machine: dict[str, Any]
    ok: bool = True
