"""Figures in the documentation, from the JSON of the runs that measured them.

python -m tests.figures   writes them anew, between the marks of each page

A block `<!-- figures: NAME -->` … `<!-- end of figures -->` is what docs/figures/NAME.md.j2 makes. There each number is
an expression that names its result file and its place in it; tests/unit/test_figures.py checks that no number is
written by hand, and that the pages are what this command writes.
"""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path
from typing import Any

import jinja2

ROOT = Path(__file__).resolve().parents[1]
TEMPLATES = ROOT / "docs" / "figures"
RESULTS = ROOT / "docs" / "results"
BLOCK = re.compile(r"<!-- figures: (\S+) -->\n(.*?)<!-- end of figures -->", re.S)
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def digits(value: float, number: int = 1) -> str:
    """A number with so many digits after the point."""
    return f"{value:.{number}f}"


def rows(result: dict[str, Any], **wanted: Any) -> list[dict[str, Any]]:
    """A result's rows that have these values."""
    return [row for row in result["rows"] if all(row[name] == value for name, value in wanted.items())]


def median(rows: list[dict[str, Any]], name: str) -> float:
    """Of a column."""
    return statistics.median(float(row[name]) for row in rows)


def where(result: dict[str, Any]) -> str:
    """The command that measured a result, and the machine."""
    machine = result["machine"]
    cpu = re.sub(r"[(](R|TM)[)]| Processor.*", "", machine["cpu"])
    bytecode = ", without Python bytecode" if machine.get("bytecode") is False else ""
    return f"`{result['command']}`, {machine['cores']} cores of an {cpu}, {machine['memory_gib']:.0f} GiB{bytecode}"


def environment() -> jinja2.Environment:
    """What templates know: `r` has the results by the names of their files, those in folders by `folder_name`."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters |= {"d": digits, "median": median, "rows": rows, "where": where}
    files = sorted(RESULTS.rglob("*.json"))
    made.globals["r"] = {
        "_".join(file.relative_to(RESULTS).with_suffix("").parts): json.loads(file.read_text()) for file in files
    }
    return made


def rendered(page: str) -> str:
    """A page with all its figures as the results have them."""
    templates = environment()

    def block(match: re.Match[str]) -> str:
        text = templates.get_template(f"{match[1]}.md.j2").render()
        return f"<!-- figures: {match[1]} -->\n{text}<!-- end of figures -->"

    return BLOCK.sub(block, page)


if __name__ == "__main__":
    for file in PAGES:
        file.write_text(rendered(file.read_text()))
