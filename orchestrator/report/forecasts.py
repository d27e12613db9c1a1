"""Would the starts of a sweep have been foreseen? Each one is set against what the sweep's other models say of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.timeline.forecast import Forecast, Seen

_FEW = 3  # other sizes, without which nothing is foreseen


def foresee(rows: Sequence[dict[str, Any]], cells: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Give each row `expected`: for each replica `seconds`, `low`, `high`, and `off`, the error over what it took.

    Args:
        rows: of the comparison, changed in place.
        cells: what they are about.

    Returns:
        How good that was: `starts`, how many of them were expected `within_10_percent`, and how many ended
        `within_interval`; None: too few models differ in size.
    """
    seen = [_seen(cell["data"]) for cell in cells]
    sizes = {start.size for starts in seen for start in starts}
    if len(sizes) <= _FEW:
        return None
    forecasts = {size: Forecast([s for starts in seen for s in starts if s.size != size]) for size in sizes}
    within = inside = count = 0
    for row, starts in zip(rows, seen, strict=True):
        found = row["expected"] = []
        for start in starts:
            expected = forecasts[start.size].expected(start.size, compiled=start.compiled, fresh=start.fresh)
            off = expected.seconds / start.seconds - 1
            told = {name: round(value, 2) for name, value in vars(expected).items()}
            found.append({**told, "off": round(off, 3)})
            count, within = count + 1, within + (abs(off) <= 0.1)
            inside += expected.low <= start.seconds <= expected.high
    return {"starts": count, "within_10_percent": within, "within_interval": inside}


def _seen(data: Mapping[str, Any]) -> list[Seen]:
    """A run's starts; none of stock vLLM's, which is another kind."""
    if not data.get("config", {}).get("fast_cold_start"):
        return []
    starts = (Seen.of(found, fresh=i == 0) for i, found in enumerate(data.get("replicas", ())))
    return [start for start in starts if start]
