"""Print the table as Markdown, for docs/architecture.md: `python -m orchestrator.compat`."""

from __future__ import annotations

from orchestrator.compat.table import TABLE


def markdown() -> str:
    """One row a feature: what it leans on, and what is lost without it."""
    rows = ["| feature | leans on | without it |", "|---|---|---|"]
    for feature in dict.fromkeys(feature for name in TABLE for feature in name.features):
        names = [f"`{name}` ({name.use.value})" for name in TABLE if feature in name.features]
        rows.append(f"| {feature.name} | {', '.join(names)} | {feature.off} |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(markdown())
