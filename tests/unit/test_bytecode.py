"""Modules that each process compiles anew are told, with the reason and the command."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys, types
sys.path.insert(0, sys.argv[1])
sys.modules["odd"] = types.SimpleNamespace(__spec__="libraries put all sorts of things there")
for i in range(200):
    __import__(f"made_up_{i}")
from orchestrator.cluster import bytecode
print(bytecode.complete("made_up_0"))
print(bytecode.note())
"""


@pytest.fixture
def modules(tmp_path: Path) -> Path:
    folder = tmp_path / "modules"
    folder.mkdir()
    for i in range(200):
        (folder / f"made_up_{i}.py").write_text("x = 1\n")
    return folder


def told(modules: Path, **environment: str) -> tuple[str, str]:
    known = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(modules)],
        env={**known, **environment}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    complete, note = done.stdout.splitlines()
    return complete, note


def test_what_python_compiles_by_itself_is_not_told(modules: Path) -> None:
    assert told(modules) == ("True", "")
    assert told(modules, PYTHONDONTWRITEBYTECODE="1") == ("True", "")  # it is there


def test_what_each_process_compiles_is_told(modules: Path) -> None:
    complete, note = told(modules, PYTHONDONTWRITEBYTECODE="1")
    assert complete == "False"
    assert note.startswith("slow imports: ")
    assert "PYTHONDONTWRITEBYTECODE is set" in note
    assert "python -m compileall" in note
    assert told(modules, PYTHONPYCACHEPREFIX=str(modules / "elsewhere")) == ("True", "")


def test_a_folder_that_cannot_be_written(modules: Path) -> None:
    (modules / "__pycache__").touch()  # no folder can be made there, not even by root
    complete, note = told(modules)
    assert complete == "False"
    assert "could not be written" in note or "cannot be written" in note
