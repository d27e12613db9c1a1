"""Two results side by side: what differs in figures, settings and machine."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from orchestrator.errors import ConfigError
from orchestrator.report.page import comparison
from orchestrator.report.tables import phase_lengths

_FILES = ("result.json", "bench.json", "sweep.json", "warm.json")
_PATHS = {
    "id",
    "state_dir",
    "store",
    "key_file",
    "node_folder",
    "search_path",
}  # differ from run to run, and mean nothing


@dataclass(frozen=True)
class Comparison:
    """Two results of one kind.

    Attributes:
        kind: run, bench, sweep or warm.
        names: what was compared.
        figures: (what, a, b); None where one of them has no such figure.
        settings: (setting, a, b), those that differ.
    """

    kind: str
    names: tuple[str, str]
    figures: tuple[tuple[str, float | None, float | None], ...]
    settings: tuple[tuple[str, str, str], ...]


def load(path: str) -> dict[str, Any]:
    """A result by its file, or by the folder it is in.

    Raises:
        ConfigError: there is none.
    """
    found = Path(path)
    if found.is_dir():
        found = next((found / name for name in _FILES if (found / name).is_file()), found)
    try:
        data: dict[str, Any] = json.loads(found.read_text())
        kind, version = data["schema"].removeprefix("orchestrator.").split("/")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} is no result.", where=path, hint=f"Name a job's output folder, or its {', '.join(_FILES)}."
        ) from error
    if version != "1":
        raise ConfigError(f"{path} has schema {data['schema']!r}, which this version does not know.", where=path)
    return {**data, "kind_of_result": kind}


def compare(a: str, b: str) -> Comparison:
    """Set two results against each other.

    Raises:
        ConfigError: one of them is no result, or they are of different kinds.
    """
    one, other = load(a), load(b)
    kind = one["kind_of_result"]
    if kind != other["kind_of_result"]:
        raise ConfigError(f"{a} is a {kind}, {b} a {other['kind_of_result']}.", where=b)
    left, right = _figures(one), _figures(other)
    figures = tuple((name, left.get(name), right.get(name)) for name in dict.fromkeys([*left, *right]))
    theirs, ours = _settings(one), _settings(other)
    names = sorted({*theirs, *ours})
    differ = tuple((n, theirs.get(n, "-"), ours.get(n, "-")) for n in names if theirs.get(n) != ours.get(n))
    return Comparison(kind, (a, b), figures, differ)


def show(found: Comparison, console: Console, page: str | None) -> None:
    """Print the tables, and write the page if it is wanted."""
    table = Table(title=f"{found.kind}: a = {found.names[0]}, b = {found.names[1]}", title_justify="left")
    table.add_column("figure", overflow="fold")
    for column in ("a", "b", "b / a"):
        table.add_column(column, justify="right")
    for name, a, b in found.figures:
        ratio = f"{b / a:.2f}" if a and b is not None else "-"
        table.add_row(name, *("-" if v is None else f"{v:g}" for v in (a, b)), ratio)
    console.print(table)
    settings = Table(title="What else differs", title_justify="left")
    for column in ("setting", "a", "b"):
        settings.add_column(column, overflow="fold")
    for row in found.settings:
        settings.add_row(*row)
    console.print(settings if found.settings else "No setting differs.")
    if page is not None:
        Path(page).write_text(comparison(found.kind, found.names, found.figures, found.settings))
        console.print(f"Report: {page}", soft_wrap=True)


def _figures(data: Mapping[str, Any]) -> dict[str, float]:
    found: dict[str, float] = {}
    if data["kind_of_result"] == "sweep":
        for cell in data["cells"]:
            found |= _numbers({k: v for k, v in cell.items() if k != "folder"}, cell["name"])
    elif data["kind_of_result"] == "bench":
        found |= _numbers(data["summary"], "")
    else:
        found |= _numbers({k: data[k] for k in ("first_token_s", "tokens_per_s", "ttft_s", "bytes") if k in data}, "")
        for replica in data["replicas"]:
            found |= _numbers(phase_lengths(replica), replica["replica"])
    return found


def _settings(data: Mapping[str, Any]) -> dict[str, str]:
    config = {k: v for k, v in _leaves(data.get("config", {}), "") if not set(k.split(".")) & _PATHS}
    outcomes = [replica["receipt"]["outcome"] for replica in data.get("replicas", ())]
    facts = dict(_leaves(data.get("machine", {}), "machine"))
    return {**config, **facts, "command": str(data.get("command", "-")), "receipts": " ".join(outcomes)}


def _numbers(value: Any, name: str) -> dict[str, float]:
    leaves = _leaves(value, name, keep=True)
    return {k: float(v) for k, v in leaves if isinstance(v, (int, float)) and not isinstance(v, bool)}


def _leaves(value: Any, name: str, keep: bool = False) -> list[tuple[str, Any]]:
    """All values of nested mappings and lists, by their dotted names."""
    items: Sequence[tuple[Any, Any]]
    if isinstance(value, Mapping):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    else:
        return [(name, value if keep else str(value))]
    return [leaf for k, v in items for leaf in _leaves(v, f"{name}.{k}" if name else str(k), keep)]
