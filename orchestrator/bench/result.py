"""What every benchmark returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Plot:
    """How rows are drawn.

    Attributes:
        title: with the unit.
        value: the column that is drawn.
        by: columns that name a bar, or a line.
        over: the column of a line's x; none: bars.
    """

    title: str
    value: str
    by: tuple[str, ...]
    over: str = ""


@dataclass(frozen=True)
class BenchResult:
    """A benchmark's outcome: `summary` for scripts, `rows` for the table."""

    kind: str
    summary: dict[str, Any]
    rows: list[dict[str, Any]]
    machine: dict[str, Any]
    ok: bool = True
    plots: tuple[Plot, ...] = ()
