"""Every measured figure in the documentation is in the JSON of the run that it names."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from orchestrator.report import results

ROOT = Path(__file__).resolve().parents[2]
RESULTS = sorted((ROOT / "docs" / "results").glob("*.json"))
BLOCK = re.compile(r"<!-- figures: (\S+) -->\n(.*?)<!-- end of figures -->", re.S)
BLOCKS = [
    pytest.param(results, text, id=f"{file.name}-{results}")
    for file in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    for results, text in BLOCK.findall(file.read_text())
]


def numbers(found: Any) -> set[str]:
    """All numbers in a JSON value, rounded to one decimal."""
    if isinstance(found, dict):
        return set().union(*map(numbers, found.values())) if found else set()
    if isinstance(found, list):
        return set().union(*map(numbers, found)) if found else set()
    return {f"{found:.1f}"} if isinstance(found, (int, float)) and not isinstance(found, bool) else set()


def test_there_are_figures() -> None:
    assert BLOCKS


@pytest.mark.parametrize(("results", "text"), BLOCKS)
def test_figures_are_measured(results: str, text: str) -> None:
    known = set().union(*(numbers(json.loads((ROOT / name).read_text())) for name in results.split(",")))
    without_versions = re.sub(r"\d+\.\d+\.\d+|vLLM \d+\.\d+", "", text)
    said = set(re.findall(r"(?<![\d.])\d+\.\d(?!\d)", without_versions))
    assert said
    assert not said - known, f"not in {results}: {sorted(said - known)}"


@pytest.mark.parametrize("file", RESULTS, ids=lambda file: file.stem)
def test_results_have_their_schema_and_went_well(file: Path) -> None:
    found = json.loads(file.read_text())
    jsonschema.validate(found, json.loads((ROOT / "docs" / "schemas" / "bench.json").read_text()))
    assert found["ok"]


@pytest.mark.parametrize("file", RESULTS, ids=lambda file: file.stem)
def test_one_command_reproduces_every_result(file: Path) -> None:
    suite = yaml.safe_load((ROOT / "conf" / "bench" / "all.yaml").read_text())["suite"]
    overrides = shlex.split(json.loads(file.read_text())["command"])[2:]
    assert set(overrides) in [set(run["run"]) for run in suite]


def test_the_page_of_results_is_made_from_them() -> None:
    page = results.markdown({file.stem: json.loads(file.read_text()) for file in RESULTS})
    assert (ROOT / "docs" / "results" / "README.md").read_text() == page


def test_the_check_can_fail() -> None:
    assert numbers({"a": [1.26, {"b": 2}], "ok": True}) == {"1.3", "2.0"}
