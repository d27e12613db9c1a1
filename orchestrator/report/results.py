"""Benchmarks' JSON -> Markdown, so that no figure of the documentation is typed by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_BYTECODE = {True: "", False: "; no Python bytecode", None: "; Python bytecode not recorded"}


def markdown(found: Mapping[str, Mapping[str, Any]]) -> str:
    """A page of results.

    Args:
        found: for each name (of its file) a benchmark's JSON.
    """
    parts = [
        "# Results",
        "",
        "Generated from the JSON of benchmarks; `python jobs/report.py --results docs/results` writes it anew.",
        "",
    ]
    for name, data in found.items():
        machine = data["machine"]
        versions = ", ".join(f"{package} {version}" for package, version in machine["versions"].items())
        parts += [
            f"## bench={data['kind']}: {name}", "",
            f"`{data['command']}`  ",
            f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB; {versions}"
            + _BYTECODE[machine.get("bytecode")] + _speed(machine.get("speed")) + ". "
            + ("Everything was as it has to be." if data["ok"] else "**Not everything was as it has to be.**"), "",
        ]  # fmt: skip
        parts += _table(data["summary"])
    return "\n".join(parts).rstrip() + "\n"


def _speed(found: Mapping[str, float] | None) -> str:
    if found is None:
        return ""
    return (
        f"; ten million additions {found['loop_s']} s, 512 MiB of new memory {found['page_faults_s']} s, "
        f"256 MiB from disk {found['file_read_s']} s"
    )


def _table(summary: Mapping[str, Any]) -> list[str]:
    lines = ["| what | value |", "|---|---|"]
    columns = _columns(summary)
    for name, value in summary.items():
        if name in columns:
            continue
        if isinstance(value, Mapping) and all(isinstance(v, Mapping) for v in value.values()) and value:
            lines += [f"| {name}, {part} | {_text(v)} |" for part, v in value.items()]
        else:
            lines.append(f"| {name} | {_text(value)} |")
    if columns:
        lines += ["", f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
        for row in summary[columns[0]]:
            cells = (_text(summary[column].get(row, "")) for column in columns)
            lines.append(f"| {row} | {' | '.join(cells)} |")
    return [*lines, ""]


def _columns(summary: Mapping[str, Any]) -> list[str]:
    """Figures of the same things, which make one table: a row for each thing."""
    several = {name: set(v) for name, v in summary.items() if isinstance(v, Mapping) and len(v) > 3}
    first = next(iter(several.values()), set())
    same = [name for name, things in several.items() if things <= first]
    return same if len(same) > 1 else []


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k}: {_text(v)}" for k, v in value.items())
    if isinstance(value, list):
        return " to ".join(map(_text, value)) if len(value) == 2 else " ".join(map(_text, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
