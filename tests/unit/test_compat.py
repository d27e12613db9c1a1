"""What we lean on in vLLM, Ray and torch: one table, checked, and the only way there."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import io
import json
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from orchestrator import compat, timeline
from orchestrator.compat import features, lookup, moved, patching, table
from orchestrator.compat.__main__ import markdown
from orchestrator.compat.table import Name, Use
from orchestrator.report import page, tables
from tests.unit.commands import ROOT, run

PACKAGE = ROOT / "orchestrator"
LIBRARIES = {"vllm", "ray", "torch"}
FEATURE = features.Feature("our feature", "nothing happens")


@pytest.fixture
def noted(monkeypatch) -> list[str]:
    """What is found meanwhile; nothing of it stays."""
    lines: list[str] = []
    monkeypatch.setattr(patching, "_notes", lines)
    monkeypatch.setattr(lookup, "originals", {})
    return lines


class Compiled:
    """A compiled function that vLLM saves."""


class Original:
    @staticmethod
    def still() -> str:
        return "still"

    @classmethod
    def of_class(cls, word: str) -> str:
        return word

    def __init__(self) -> None:
        self.given = 1


def original_function(graph: object, ops: object) -> str:
    return "original"


@pytest.fixture
def library(monkeypatch) -> types.ModuleType:
    """A module of Ray's, say, with a function and a class; ops.py of vLLM has imported both, and somebody else too."""
    home = types.ModuleType("ray.home")
    home.function, home.Original = original_function, type("Original", (Original,), dict(vars(Original)))
    monkeypatch.setitem(sys.modules, home.__name__, home)
    for name in ("vllm.early", "somebody"):
        module = types.ModuleType(name)
        module.function, module.Original = home.function, home.Original
        monkeypatch.setitem(sys.modules, name, module)
    return home


def name(attribute: str, takes: str | None = None, *named: str) -> Name:
    return Name("ray.home", attribute, Use.patched, (FEATURE,), "a test", takes, named)


@pytest.mark.parametrize(
    ("entry", "line"),
    [
        (name("function", "graph, ops"), ""),
        (name("function", "graph, ..."), ""),
        (name("function", "..., ops"), ""),
        (name("function", None, "ops", "graph"), ""),
        (name("Original.of_class", "word"), ""),
        (name("Original.given"), ""),
        (name("function", "graph"), "home.function takes (graph, ops), we know (graph)"),
        (name("function", "ops, graph"), "home.function takes (graph, ops), we know (ops, graph)"),
        (name("function", None, "more"), "home.function takes no more"),
        (name("gone"), "home.gone is gone"),
        (name("Original.gone"), "Original.gone is gone"),
        (name("Gone.method"), "Gone.method is gone"),
        (Name("ray.home.away", "x", Use.called, (FEATURE,), "a test"), "ray.home.away is gone"),
    ],
    ids=str,
)
def test_a_name_that_is_not_as_we_know_it_is_off(entry: Name, line: str, library, noted: list[str]) -> None:
    assert lookup.fault(entry, load=True) == line
    if not line:
        assert not noted
        return
    assert not compat.patch(entry, lambda plain: None)
    with compat.replaced(entry, lambda plain: None) as done:
        assert not done
    with pytest.raises(compat.Gone, match="our feature off"):
        compat.get(entry)
    assert noted == [f"our feature off: {line}"]


def test_a_feature_is_on_while_all_its_names_are_right(library, noted: list[str], monkeypatch) -> None:
    other = dataclasses.replace(name("Original.gone"), features=(features.Feature("another", "x"),))
    monkeypatch.setattr(patching, "TABLE", (name("function", "graph, ops"), name("Original.still", ""), other))
    assert compat.on(FEATURE)
    assert compat.check() == ["another off: Original.gone is gone"]
    monkeypatch.setattr(library, "function", lambda graph: None)
    assert not compat.on(FEATURE)


def test_who_imported_a_name_early_gets_the_patch_or_is_named(library, noted: list[str]) -> None:
    early, somebody = sys.modules["vllm.early"], sys.modules["somebody"]
    assert compat.patch(name("function", "graph, ops"), lambda plain: lambda g, o: f"ours, then {plain(g, o)}")
    assert library.function(1, 2) == early.function(1, 2) == "ours, then original"
    assert somebody.function(1, 2) == "original"
    assert noted == ["our feature passed by: somebody imported home.function before it was patched"]
    assert lookup.fault(name("function", "graph, ops"), load=True) == ""  # the original counts, not what we put there


def test_a_class_derived_too_early_is_named(library, noted: list[str]) -> None:
    derived = type("Derived", (library.Original,), {"__module__": "vllm.early"})
    assert compat.patch(name("Original"), lambda plain: type("Ours", (plain,), {}))
    assert library.Original.__name__ == sys.modules["vllm.early"].Original.__name__ == "Ours"
    assert "our feature passed by: vllm.early.Derived was derived from home.Original before it was patched" in noted
    assert derived.__bases__[0].__name__ == "Original"


def test_a_patch_for_a_while_leaves_everything_as_it_was(library, noted: list[str]) -> None:
    early, kinds = sys.modules["vllm.early"], vars(library.Original).copy()
    with compat.replaced(name("function"), lambda plain: "ours"):
        assert library.function == early.function == "ours"
    assert library.function is early.function is original_function
    for method in ("still", "of_class", "__repr__"):  # of two kinds, and one that is inherited
        with compat.replaced(name(f"Original.{method}"), lambda plain: lambda *words: "ours"):
            assert getattr(library.Original(), method)() == "ours"
    assert vars(library.Original) == kinds
    assert not lookup.originals


def test_an_answer_for_a_while_reaches_whoever_holds_the_function(library, noted: list[str]) -> None:
    entry, kept = name("function", "graph, ops"), [library.function]
    with compat.answered(entry, lambda graph, ops: f"ours {graph} {ops}") as done:
        assert done
        assert {f(1, ops=2) for f in (library.function, sys.modules["somebody"].function, *kept)} == {"ours 1 2"}
        assert lookup.fault(entry, load=True) == ""  # the original counts
    assert library.function is original_function
    assert (kept[0](1, 2), lookup.originals, noted) == ("original", {}, [])
    for wrong, line in (
        (name("function", "graph"), "home.function takes (graph, ops), we know (graph)"),
        (name("Original"), "home.Original is no plain function"),
    ):
        with compat.answered(wrong, lambda *words: "ours") as done:
            assert not done
        assert noted.pop() == f"our feature off: {line}"


def test_findings_reach_the_receipt_the_table_and_the_page(tmp_path: Path) -> None:
    log = timeline.EventLog(tmp_path / "events.jsonl")
    line = "short profile off: CPUModelRunner.profile_run is gone"
    for text in (compat.PREFIX + line, "kv_update=layer_index: 3", compat.PREFIX + line):
        log.write(timeline.Event(1.0, "log", text))
    found = timeline.notes(log.read())
    assert found == (line,)
    receipt = {"outcome": "hit", "reason": "", "notes": list(found)}
    replica = {"replica": "r0", "first_token_s": 1.0, "receipt": receipt, "phases": []}
    shown = io.StringIO()
    Console(file=shown, width=120).print(tables.timeline_table({"replicas": [replica]}))
    assert f"r0: {line}" in " ".join(shown.getvalue().split())
    run_ = {
        "replicas": [replica], "answers": {"r0": []}, "same_tokens": True, "command": "x",
        "machine": {"cpu": "x", "cores": 2, "memory_gib": 1.0, "python": "3", "versions": {}},
        "config": {"model": {"name": "m"}, "fast_cold_start": True, "cold_start": {"kv_update": "layer_index"}},
    }  # fmt: skip
    assert line in page.html("a run", [run_])


def test_the_document_has_the_table() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    assert markdown() in text, "put what `python -m orchestrator.compat` prints into docs/architecture.md"
    assert all(f"| {feature.name} |" in text for entry in table.TABLE for feature in entry.features)


def test_every_name_has_a_reason_and_the_table_imports_nothing() -> None:
    assert all(entry.purpose and entry.features and all(x.off for x in entry.features) for entry in table.TABLE)
    assert len({(entry.module, entry.attribute) for entry in table.TABLE}) == len(table.TABLE)
    program = "import sys, orchestrator.compat as c; print(c.check(), {'vllm', 'ray', 'torch'} & set(sys.modules))"
    assert run("-c", program).stdout.strip() == "[] set()"


@pytest.fixture(scope="module")
def with_vllm() -> dict[str, dict]:
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("no vLLM here")
    done = run("-m", "tests.unit.compat_program", HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"')]
    return {scenario: found for line in lines for scenario, found in line.items()}


def test_with_the_pinned_versions_all_is_on(with_vllm) -> None:
    found = with_vllm["pinned"]
    assert found["found"] == found["notes"] == found["with all imported"] == []
    assert found["seconds"] < 1.0


def test_a_removed_attribute_turns_one_feature_off(with_vllm) -> None:
    off = ["short profile off: CPUModelRunner.profile_run is gone"]
    assert with_vllm["removed"] == {"found": off, "patched": False, "trace once": True}


def test_a_changed_signature_turns_one_feature_off(with_vllm) -> None:
    off = "layer-index off: backends.split_graph takes (graph, ops), we know (graph, splitting_ops)"
    assert with_vllm["changed"] == {"found": [off], "left alone": True, "falls back": off, "trace once": True}


def test_vllms_own_modules_that_imported_a_name_get_the_patch(with_vllm) -> None:
    assert with_vllm["imported_early"] == {
        "processes": [True, True, True],
        "stitching": True,
        "ours": "orchestrator.vllm_plugin.compiler_hooks",
        "notes": [],
    }


def test_a_patched_name_still_looks_as_vllm_has_it(with_vllm) -> None:
    """Else a service's start, which looks later, would leave its graphs alone."""
    assert with_vllm["overlapped"] == {"patched": True, "on": True, "notes": []}


def test_an_engine_that_did_not_ask_gets_vllms_own(with_vllm) -> None:
    found = with_vllm["stock"]
    assert found["stock pass"] == found["vLLM's pass"]
    assert found["stock mode"] == "DYNAMO_TRACE_ONCE"
    assert found["stock key"]
    assert found["asked mode"] == "VLLM_COMPILE"
    assert not found["asked key"]
    if found["cpu"]:
        assert found["asked pass"] == "did nothing" != found["stock pass"]


def test_every_hook_of_the_compiler_does_what_vllm_does_unless_asked() -> None:
    pytest.importorskip("torch")
    from orchestrator.vllm_plugin import compiler_hooks, trace_once

    calls: list[tuple] = []

    def original(*words: object, **named: object) -> object:
        calls.append((words, named))
        return calls

    config = types.SimpleNamespace(additional_config={})
    model = types.SimpleNamespace(vllm_config=config)
    compiled = types.SimpleNamespace(vllm_backend=model, execution_code="code")
    assert compiler_hooks._known(original)(model, "graph", "inputs", more=1) is calls
    assert compiler_hooks._split(original)("graph", ["op"]) is calls
    assert compiler_hooks._announced(original)("split") is calls
    assert trace_once._once(original)(model, 1, more=2) is calls
    assert compiler_hooks._without_graph(compiled) is compiled
    assert calls == [
        ((model, "graph", "inputs"), {"more": 1}),
        (("graph", ["op"]), {}),
        (("split",), {}),
        ((model, 1), {"more": 2}),
    ]


def test_an_artifact_is_small_where_its_backend_makes_self_contained_ones() -> None:
    pytest.importorskip("vllm.envs")
    from orchestrator.vllm_plugin import compiler_hooks

    asked = types.SimpleNamespace(additional_config={"orchestrator": {"kv_update": "split"}})
    whole = types.SimpleNamespace(vllm_config=asked)  # before 0.33, where vLLM's environment says it for all
    for backend, small in (
        (whole, bool(compat.get(table.MEGA_ARTIFACT))),
        (types.SimpleNamespace(vllm_config=asked, use_mega_artifact=True), True),
        (types.SimpleNamespace(vllm_config=asked, use_mega_artifact=False), False),
    ):
        compiled = Compiled()
        compiled.vllm_backend, compiled.execution_code, compiled.graph_module = backend, "code", "the graph"
        assert (compiler_hooks._without_graph(compiled) is not compiled) is small
        assert compiled.graph_module == "the graph"


def test_a_compile_begins_by_our_word_where_vllm_has_none(monkeypatch) -> None:
    """Receipts ask whether a compile began; vLLM says so since 0.32."""
    pytest.importorskip("torch")
    from orchestrator.vllm_plugin import trace_once

    begun = "Starting torch.compile"
    assert timeline.facts([timeline.Event(1.0, "log", begun)]).compiled == 1
    told: list[str] = []
    monkeypatch.setattr(trace_once.logger, "info", told.append)
    vllm = types.ModuleType("vllm")
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    asked = {"orchestrator": {"kv_update": "split", "trace_once": False}}
    for version, settings, said in (("0.31.0", asked, [begun]), ("0.31.0", {}, []), ("0.32.0", asked, [])):
        vllm.__version__ = version
        told.clear()
        model = types.SimpleNamespace(vllm_config=types.SimpleNamespace(additional_config=settings))
        assert trace_once._once(lambda self: "compiled")(model) == "compiled"
        assert told == said


def test_a_module_that_moved_is_found_by_its_old_name_and_only_where_that_is_gone(monkeypatch) -> None:
    now, package = types.ModuleType("vllm.now"), types.ModuleType("vllm")
    now.Thing, package.__path__ = Original, []
    monkeypatch.setattr(sys, "meta_path", [f for f in sys.meta_path if type(f).__module__ != moved.__name__])
    for module in (now, package):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(moved, "MOVED", {"vllm.before": "vllm.now", "json": "vllm.now", "vllm.never": "vllm.lost"})
    with pytest.raises(ModuleNotFoundError, match=r"vllm\.before"):
        importlib.import_module("vllm.before")
    for _ in range(2):
        compat.follow()
    before = importlib.import_module("vllm.before")
    assert before.Thing is Original
    assert before.__name__ == "vllm.before"
    assert now.__spec__ is None
    monkeypatch.delitem(sys.modules, "json")
    assert importlib.import_module("json").__name__ == "json"
    with pytest.raises(ModuleNotFoundError, match=r"vllm\.lost"):
        importlib.import_module("vllm.never")
    del sys.modules["vllm.before"]


# What only compat may do. What an object of theirs holds is read where it is used, and has to be in the table.
# Followed are names bound by imports of these libraries, and what is assigned from them.


def breaches(source: str) -> list[str]:
    """Where a file imports, reads or sets what is not public in vLLM, Ray or torch, or sets anything of theirs."""
    tree = ast.parse(source)
    bound: set[str] = set()
    standard: set[str] = set()
    found: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            prefix = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            for alias in node.names:
                path, name = f"{prefix}{alias.name}", alias.asname or alias.name.split(".")[0]
                root = path.split(".")[0]
                if root in LIBRARIES:
                    bound.add(name)
                    if any(private(part) for part in path.split(".")):
                        found.append(f"{node.lineno}: imports {path}")
                elif root in sys.stdlib_module_names - {"multiprocessing"}:
                    standard.add(name)
    for node in ast.walk(tree):  # x = vllm.y, x = type(vllm.y)
        if isinstance(node, ast.Assign):
            for target, value in pairs(node):
                if isinstance(target, ast.Name) and root_of(value) in bound:
                    bound.add(target.id)
    allowed = {part for entry in table.TABLE for part in entry.attribute.split(".")}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            root = root_of(node)
            if root in bound and not isinstance(node.ctx, ast.Load):
                found.append(f"{node.lineno}: sets {ast.unparse(node)}")
            if private(node.attr) and root not in standard:
                direct = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
                if root in bound or not (direct or node.attr in allowed):
                    found.append(f"{node.lineno}: uses {ast.unparse(node)}")
        elif isinstance(node, ast.Call) and root_of(node.func) in ("getattr", "hasattr", "setattr", "delattr"):
            owner, what, *_ = node.args
            sets = root_of(node.func) in ("setattr", "delattr") and root_of(owner) in bound
            hidden = isinstance(what, ast.Constant) and private(what.value) and what.value not in allowed
            if sets or hidden:
                found.append(f"{node.lineno}: {ast.unparse(node)}")
    return found


def private(word: str) -> bool:
    return word.startswith("_") and not word.startswith("__")


def pairs(node: ast.Assign) -> Iterator[tuple[ast.expr, ast.expr]]:
    for target in node.targets:
        if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
            yield from zip(target.elts, node.value.elts, strict=False)
        else:
            yield target, node.value


def root_of(node: ast.AST) -> str:
    """The name that a chain of attributes begins with; of `type(x)`, of what x begins with."""
    while isinstance(node, ast.Attribute):
        node = node.value
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "type":
        return root_of(node.args[0])
    return node.id if isinstance(node, ast.Name) else ""


FILES = sorted(p for p in PACKAGE.rglob("*.py") if "compat" not in p.relative_to(PACKAGE).parts)


@pytest.mark.parametrize("file", FILES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_only_compat_reaches_behind_what_is_public(file: Path) -> None:
    assert breaches(file.read_text()) == []


@pytest.mark.parametrize(
    "source",
    [
        "from ray.llm._internal.x import y",
        "import torch._dynamo.aot_compile",
        "from vllm.utils import _hidden",
        "import ray\nray._private.services",
        "import vllm\nvllm.x.Class.method = None",
        "from vllm.x import Class\nClass.method = None",
        "from vllm.x import Class\nsetattr(Class, 'method', None)",
        "from vllm.x import current\nkind = type(current)\nkind.method = None",
        "from vllm import x\nplain, x.y = x.y, None",
        "from vllm import x\ndel x.y",
        "def f(target): return target._hidden",
        "def f(target): return getattr(target, '_hidden')",
        "class A:\n  def f(self): return self.engine._hidden",
    ],
)
def test_the_rule_sees(source: str) -> None:
    assert breaches(source)


@pytest.mark.parametrize(
    "source",
    [
        "import os\nos._exit(0)",
        "import torch\ntorch.set_num_threads(1)",
        "class A:\n  def f(self): self._own = 1",
        "from vllm.x import Class\nthing = Class()\nthing.y = 1",
        "def f(target): return target._schema",
    ],
)
def test_the_rule_lets_pass(source: str) -> None:
    assert not breaches(source)
