"""What the documentation names is there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# not CHANGELOG.md, which has old names
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "docs" / "upstream" / "README.md",
]
FILE = re.compile(r"`((?:[\w.-]+/)+(?:[\w-]+\.(?:py|yaml|json|lock))?)`")
LINK = re.compile(r"\]\((?!https?:)([^)#]+)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_are_there(page: Path) -> None:
    known = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    known = known or [p.relative_to(ROOT).as_posix() for p in ROOT.rglob("*") if ".venv" not in p.parts]
    whole = [f"/{name}" for name in known] + [f"/{parent}/" for name in known for parent in Path(name).parents]
    named = {name for name in FILE.findall(page.read_text()) if not name.startswith(("outputs/", "build/"))}
    assert not [name for name in named if not any(path.endswith(f"/{name}") for path in whole)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    assert not [link for link in LINK.findall(page.read_text()) if not (page.parent / link).exists()]


@pytest.mark.parametrize("script", sorted((ROOT / "docs" / "upstream").glob("*.py")), ids=lambda p: p.name)
def test_scripts_for_upstream_stand_alone(script: Path) -> None:
    """Whoever gets one has not got the project."""
    text = script.read_text()
    compile(text, script.name, "exec")
    assert "orchestrator" not in text
    assert f"python docs/upstream/{script.name}" in text
    assert f"]({script.name})" in (script.parent / "README.md").read_text()


def test_torch_still_reuses_a_region_for_another_object() -> None:
    """Else the guard in trace_once may go, and docs/upstream says something that is no longer so."""
    pytest.importorskip("torch")
    done = subprocess.run(
        [sys.executable, "docs/upstream/torch_nested_region.py"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "ANOTHER ANSWER" in done.stdout
