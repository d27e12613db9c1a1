"""What is printed is what was said, letter by letter: rich takes nothing in it for its own markup."""

from __future__ import annotations

import ast
import io
from pathlib import Path

import pytest

from orchestrator.cli import terminal
from orchestrator.cli.progress import Progress
from orchestrator.report import tables

PACKAGE = Path(__file__).resolve().parents[2] / "orchestrator"
LETTERS = [
    "[INST] see [bold]x and a[i] [/INST]",
    "an error with [/x] and [link=http://x]y[/link]",
    ":smile: \\[a] [#1]",
]


@pytest.fixture
def shown():
    """A console of ours, wide enough for one line each, and what it has shown."""
    console = terminal.console(stderr=True)
    console.file, console.width = io.StringIO(), 200
    return console, console.file.getvalue


@pytest.mark.parametrize("text", LETTERS)
def test_prompts_answers_notes_and_errors(shown, text: str) -> None:
    console, said = shown
    answer = {"prompt": text, "text": text, "token_ids": [1]}
    console.print(tables.answers_table({"same_tokens": True, "answers": {"replica-0": [answer]}}))
    receipt = {"outcome": "hit", "notes": [text]}
    replica = {"replica": "replica-0", "receipt": receipt, "first_token_s": 1.0, "phases": []}
    console.print(tables.timeline_table({"replicas": [replica]}).caption)  # as wide as the console
    console.print(tables.sweep_table([{"name": text, "error": text}]))
    assert said().count(text) == 5


@pytest.mark.parametrize("text", LETTERS)
def test_progress(shown, text: str, tmp_path: Path) -> None:
    console, said = shown
    with Progress(console, tmp_path / "log") as progress:
        progress.say(text, text)
    assert said().count(text) == 2
    assert (tmp_path / "log").read_text().count(text) == 2


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_there_is_no_other_console_and_no_markup(file: Path) -> None:
    calls = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]
    names = {ast.unparse(call.func) for call in calls}
    assert not names & {"rich.print", "Text.from_markup", "rich.markup.render"}
    assert ("Console" in names) == (file.name == "terminal.py")
