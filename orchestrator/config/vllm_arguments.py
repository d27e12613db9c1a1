"""The names of vLLM's own arguments, read from its source: vLLM is not imported."""

from __future__ import annotations

import ast
import difflib
import importlib.util
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from orchestrator.errors import ConfigError


def check(where: str, given: Iterable[str], known: frozenset[str]) -> None:
    """Refuse a name that vLLM has not.

    Args:
        where: the setting whose keys they are.
        given: the names.
        known: vLLM's; empty: that cannot be told here, and nothing is refused.

    Raises:
        ConfigError: a name is not known.
    """
    unknown = sorted(set(given) - known) if known else []
    if unknown:
        near = difflib.get_close_matches(unknown[0], known, n=1)
        raise ConfigError(
            f"vLLM has no argument {unknown[0]!r} for {where}.",
            where=f"{where}.{unknown[0]}",
            hint=f"Is it {near[0]}?" if near else "`vllm serve --help=all` lists them.",
        )


@cache
def engine() -> frozenset[str]:
    """AsyncEngineArgs'."""
    names = _fields("engine/arg_utils.py", ("EngineArgs", "AsyncEngineArgs"))
    return names if {"model", "tensor_parallel_size"} <= names else frozenset()


@cache
def frontend() -> frozenset[str]:
    """Those of what stands before an engine in a service: templates, parsers. Not those of vLLM's web server."""
    places = ("entrypoints/launchers/cli_args.py", "entrypoints/openai/cli_args.py")  # from 0.32, and before
    names = frozenset[str]().union(*(_fields(place, ("BaseFrontendArgs",)) for place in places))
    return names if {"chat_template", "tool_call_parser"} <= names else frozenset()


def _fields(file: str, classes: tuple[str, ...]) -> frozenset[str]:
    try:
        found = importlib.util.find_spec("vllm")
        tree = ast.parse((Path(str(found and found.origin)).parent / file).read_text())
    except (OSError, ValueError, SyntaxError):
        return frozenset()
    bodies = [node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name in classes]
    targets = [statement.target for body in bodies for statement in body if isinstance(statement, ast.AnnAssign)]
    return frozenset(t.id for t in targets if isinstance(t, ast.Name) and not t.id.startswith("_"))
