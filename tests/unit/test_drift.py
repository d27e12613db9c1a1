"""What moved in another vLLM is told from its sources, which are never imported."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from orchestrator.compat import drift, features
from orchestrator.compat.sources import Sources
from orchestrator.compat.table import Line, Name, Use
from tests.unit.commands import run

FEATURE = features.Feature("our feature", "nothing happens")
TREE = {
    "vllm/__init__.py": "raise SystemExit('imported')\n",
    "vllm/_version.py": "__version__ = version = '0.32.1'\n",
    "vllm/home.py": """
import functools
from torch import outside
from .deep import Base
from vllm.deep.parts import *
try:
    from typing import overload
except ImportError:
    pass
if functools:
    def under_a_condition(first, *, second=1, **more): ...
else:
    under_a_condition = None
@overload
def twice(x: int): ...
@overload
def twice(x: str): ...
def twice(x, y): ...
alias = twice
number: int = 1
class Here(Base):
    declared: int
    def __init__(self, given):
        self.given, self.more = given, 1
    @classmethod
    def of_class(cls, word): ...
    @staticmethod
    def still(word): ...
    class Inner:
        value = 1
@functools.dataclass(frozen=True)
class Fields:
    one: int
    other: str = ""
def say(logger):
    logger.info("%sthe graph was "
                "loaded from %s", "", "")
""",
    "vllm/deep/__init__.py": "from . import parts\nfrom .parts import Base\n",
    "vllm/deep/parts.py": "class Base:\n    async def inherited(self, a): ...\n    kept = 1\ndef by_star(z): ...\n",
    "vllm/there.py": "def went(x): ...\nclass Went: ...\n",
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return write(tmp_path / "tree", TREE)


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def name(attribute: str, takes: str | None = None, *named: str, module: str = "vllm.home", **more: tuple) -> Name:
    return Name(module, attribute, Use.patched, (FEATURE,), "a test", takes, named, **more)


@pytest.mark.parametrize(
    ("entry", "wrong"),
    [
        (name(""), ""),
        (name("number"), ""),
        (name("under_a_condition", "first, second"), ""),
        (name("under_a_condition", None, "second"), ""),
        (name("under_a_condition", None, "third"), "home.under_a_condition takes no third"),
        (name("twice", "x, y"), ""),
        (name("twice", "x"), "home.twice takes (x, y), we know (x)"),
        (name("alias", "x, ..."), ""),
        (name("Here", "given"), ""),
        (name("Here", "taken"), "home.Here takes (given), we know (taken)"),
        (name("Here.declared"), ""),
        (name("Here.given"), ""),
        (name("Here.more"), ""),
        (name("Here.kept"), ""),
        (name("Here.Inner.value"), ""),
        (name("Here.inherited", "self, a"), ""),
        (name("Here.inherited", "self"), "Here.inherited takes (self, a), we know (self)"),
        (name("Here.of_class", "word"), ""),
        (name("Here.still", "word"), ""),
        (name("Here.lost"), "Here.lost is gone"),
        (name("Here.Inner.lost"), "Here.Inner.lost is gone"),
        (name("Fields.__init__", "self, one, other"), ""),
        (name("Fields.__init__", "self, one"), "Fields.__init__ takes (self, one, other), we know (self, one)"),
        (name("by_star", "z"), ""),
        (name("outside"), ""),
        (name("outside", "x"), "home.outside cannot be called as it was"),
        (name("number", "x"), "home.number cannot be called as it was"),
        (name("parts.by_star", "z", module="vllm.deep"), ""),
        (name("lost"), "home.lost is gone"),
        (name("lost", module="vllm.lost"), "vllm.lost is gone"),
        (name("", module="vllm.lost"), "vllm.lost is gone"),
    ],
    ids=str,
)
def test_a_name_is_judged_by_its_source(entry: Name, wrong: str, tree: Path) -> None:
    assert drift.fault(entry, Sources(tree)) == wrong


def test_what_moved_is_listed_with_where_it_may_be(tree: Path, monkeypatch, tmp_path: Path) -> None:
    table = (
        name("twice", "x, y"), name("twice", "y"), name("went", "x"), name("Here.lost"),
        name("Went.x", module="vllm.old"),
        name("lost", since=(0, 33)), name("lost", since=(0, 32)), name("x", module="ray.home"),
    )  # fmt: skip
    said = (Line("the graph was loaded from", (FEATURE,)), Line("nobody says this", (FEATURE,)))
    ours = [
        "from vllm.home import Here, lost", "from vllm import there, old", "from vllm.old_there import went, never",
        "import vllm.home", "there.went, there.lost", "vllm.home.twice, vllm.home.gone", "Here.of_class, Here.gone",
        "from ray import gone", "from vllm.lost import one as same", "from vllm.home import twice as same",
    ]  # fmt: skip
    monkeypatch.setattr(drift, "TABLE", table)
    monkeypatch.setattr(drift, "LINES", (*said, Line("nor this, yet", (FEATURE,), since=(0, 33))))
    write(tmp_path, {"orchestrator/a.py": "\n".join(ours)})
    monkeypatch.setattr(drift, "_importers", lambda: [tmp_path / "orchestrator" / "a.py"])
    monkeypatch.setattr(drift, "MOVED", {"vllm.old_there": "vllm.there", "vllm.home": "vllm.lost"})
    found = [line.replace(f"{tmp_path.name}/", "") for line in drift.moved(Sources(tree))]
    assert found == [
        "our feature off: home.twice takes (x, y), we know (y)",
        "our feature off: home.went is gone (now in vllm.there?)",
        "our feature off: Here.lost is gone",
        "our feature off: vllm.old is gone (now in vllm.there?)",
        "our feature off: home.lost is gone",
        'our feature off: vLLM does not log "nobody says this"',
        "orchestrator/a.py imports vllm.home.lost, which is gone",
        "orchestrator/a.py imports vllm.old, which is gone",
        "orchestrator/a.py imports vllm.old_there.never, which is gone",
        "orchestrator/a.py imports vllm.lost.one, which is gone",
        "orchestrator/a.py imports vllm.there.lost, which is gone",
        "orchestrator/a.py imports vllm.home.gone, which is gone",
        "orchestrator/a.py imports vllm.home.Here.gone, which is gone",
    ]


def test_the_command_says_what_moved_by_its_exit_code(tree: Path, tmp_path: Path) -> None:
    program = "orchestrator.compat.drift"
    done = run("-m", program, str(tree))
    assert done.returncode == 1
    assert "layer-index off: vllm.compilation.backends is gone\n" in done.stdout
    assert "\nvLLM 0.32.1: " in done.stdout
    for words in ([str(tmp_path)], [], ["a", "b"]):
        done = run("-m", program, *words)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("error: ")
        assert done.stderr.endswith("name the folder of an unpacked vLLM: make drift VLLM=FOLDER\n")
    spec = importlib.util.find_spec("vllm")
    if spec is None:
        pytest.skip("no vLLM here")
    (tmp_path / "vllm").symlink_to(Path(spec.origin).parent)
    done = run("-m", program, str(tmp_path))
    assert done.returncode == 0, done.stdout
    assert ": 0 moved, of " in done.stdout
