"""Every measured figure in the documentation is in the JSON of the run that it names."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import jsonschema
import pytest
import yaml

from orchestrator.report import results
from tests import figures

ROOT = Path(__file__).resolve().parents[2]
RESULTS = sorted((ROOT / "docs" / "results").glob("*.json"))
FENCE = re.compile(r"^```.*?^```", re.S | re.M)
EXPRESSION = re.compile(r"\{\{.*?\}\}|\{%.*?%\}", re.S)
BY_HAND = re.compile(r"(?<![\w.])\d+\.\d+(?![\w.])")
VERSIONS = re.compile(r"(vLLM|Ray Serve LLM) \d+\.\d+")


@pytest.mark.parametrize("page", figures.PAGES, ids=lambda page: page.name)
def test_figures_are_what_their_results_say(page: Path) -> None:
    assert figures.rendered(page.read_text()) == page.read_text(), "run: make figures"


@pytest.mark.parametrize("template", sorted(figures.TEMPLATES.glob("*.j2")), ids=lambda file: file.stem)
def test_no_figure_of_a_template_is_written_by_hand(template: Path) -> None:
    text = VERSIONS.sub("", EXPRESSION.sub("", template.read_text()))
    assert not BY_HAND.findall(text)
    literals = [
        found for expression in EXPRESSION.findall(template.read_text()) for found in BY_HAND.findall(expression)
    ]
    assert not literals


@pytest.mark.parametrize("page", figures.PAGES, ids=lambda page: page.name)
def test_no_measured_time_is_outside_of_the_blocks(page: Path) -> None:
    text = FENCE.sub("", figures.BLOCK.sub("", page.read_text()))
    assert not re.findall(BY_HAND.pattern + r" (?:s|times)\b", text)


def test_another_number_is_found() -> None:
    """Any other number, in any place of a block, even one that the same result has elsewhere."""
    page = (ROOT / "README.md").read_text()
    block = figures.BLOCK.search(page)
    assert block
    for number in BY_HAND.finditer(block[2]):
        at = block.start(2) + number.start()
        changed = page[:at] + "5.2" + page[at + len(number[0]) :]
        assert changed == page or figures.rendered(changed) != changed


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
