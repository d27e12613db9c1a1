"""Print the table as Markdown, for docs/architecture.md: `python -m orchestrator.compat`."""

from __future__ import annotations

from orchestrator.compat.table import LINES, TABLE, Line, Name


def markdown() -> str:
    """One row a feature: what it leans on, and what is lost without it."""
    seams: list[Name | Line] = [*TABLE, *LINES]
    rows = ["| feature | leans on | without it |", "|---|---|---|"]
    for feature in dict.fromkeys(feature for name in TABLE for feature in name.features):
        names = [_said(seam) for seam in seams if feature in seam.features]
        rows.append(f"| {feature.name} | {', '.join(names)} | {feature.off} |")
    return "\n".join(rows)


def _said(seam: Name | Line) -> str:
    use = seam.use.value if isinstance(seam, Name) else "read in its log"
    since = f", since {'.'.join(map(str, seam.since))}" if any(seam.since) else ""
    return f"`{seam}` ({use}{since})"


if __name__ == "__main__":
    print(markdown())
