"""The architecture is the folder listing: imports point one way, and only the engine knows vLLM."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "orchestrator"
# Each layer may use those above it in this list, and of its own layer what stands before.
LAYERS = (
    ("errors", "progress", "paths", "compat", "timeline", "config"),
    ("models", "cluster", "zygote", "vllm_plugin"),
    ("graph_cache", "weights"),
    ("engine",),
    ("fleet",),
    ("serve", "runs"),
    ("bench", "report"),
    ("cli", "__main__"),
)
ORDER = [name for layer in LAYERS for name in layer]
VLLM_AT_HOME = {"engine", "vllm_plugin"}


def imports(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


FILES = sorted(p for p in PACKAGE.rglob("*.py") if p.name != "__init__.py" or p.parent != PACKAGE)


@pytest.mark.parametrize("file", FILES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_imports_point_one_way(file: Path) -> None:
    layer = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert layer in ORDER, f"give {layer} a place in LAYERS"
    for name in imports(file):
        parts = name.split(".")
        if parts[0] == "vllm":
            assert layer in VLLM_AT_HOME, f"{file.name} imports {name}"
        if parts[0] == "orchestrator" and len(parts) > 1 and parts[1] in ORDER:
            assert ORDER.index(parts[1]) <= ORDER.index(layer), f"{file.name} imports {name}"


@pytest.mark.parametrize("file", FILES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_files_stay_readable(file: Path) -> None:
    assert len(file.read_text().splitlines()) <= 250
