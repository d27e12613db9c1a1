"""Kernels, tuning results and plans travel with graphs: what a start used, to where the next node looks for it.

Triton is not installed for CPUs: the files here look like its own. `python -m tests.gpu.kernels` has the real one.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.engine.contract import EngineSpec
from orchestrator.engine.vllm.supervisor import Supervisor
from orchestrator.graph_cache import bundle, kernel_caches
from orchestrator.report.tables import kernel_lines

KEY, SIGNING = "k" * 64, b"s" * 32
LIMITS = bundle.Limits(1 << 20, 1000)
Node = Callable[[str], Path]


@pytest.fixture
def node(tmp_path: Path, monkeypatch) -> Node:
    """Be on a node: its folder; whatever is asked for then lies below that."""
    environment = dict(os.environ)
    for name in ("TRITON_CACHE_DIR", "TRITON_HOME", "DG_JIT_CACHE_DIR", "VLLM_CACHE_ROOT", kernel_caches.NODE_ROOT):
        environment.pop(name, None)
    monkeypatch.setattr(os, "environ", environment)

    def on(name: str) -> Path:
        folder = tmp_path / name
        environment.update(HOME=str(folder), XDG_CACHE_HOME=str(folder / ".cache"))
        return folder

    return on


def kernel(home: Path, key: str, content: bytes = b"cubin") -> Path:
    """What Triton leaves of one kernel."""
    folder = home / ".triton" / "cache" / key
    folder.mkdir(parents=True)
    files = {"add.cubin": content, "add.json": b"{}", "lock": b""}
    for name, data in files.items():
        (folder / name).write_bytes(data)
    paths = {name: str(folder / name) for name in ("add.cubin", "add.json")}
    (folder / "__grp__add.json").write_text(json.dumps({"child_paths": paths}))
    return folder


def begin(root: Path, after_s: float) -> None:
    """A start begins, seconds after now: the clock of files is coarse."""
    kernel_caches.begin(root)
    when = time.time() + after_s
    os.utime(root / kernel_caches.USED / ".began", (when, when))


def published(root: Path, used: tuple[str, ...] = (), limits: bundle.Limits = LIMITS) -> bytes:
    """The bundle of a start that asked Triton for some kernels."""
    for key in used:
        (root / kernel_caches.USED / key).touch()
    return bundle.pack(root, kernel_caches.collect(root, limits), SIGNING, {
        "key": KEY, "factors": {}, "created": 0.0, "publisher": "r",
    }).tobytes()  # fmt: skip


def restored(data: bytes, root: Path) -> dict:
    _, payload = bundle.verify(memoryview(data), SIGNING, KEY, LIMITS)
    bundle.install(payload, root, LIMITS)
    return kernel_caches.spread(root / kernel_caches.PART, root)


def test_what_a_start_used_is_where_the_next_node_looks_for_it(node: Node) -> None:
    home = node("one")
    root = home / "root"
    kernel(home, "OLD")
    for file in kernel(home, "USED-BEFORE").iterdir():
        os.utime(file, (1.0, 1.0))
    begin(root, -9.0)
    kernel(home, "NEW")
    gemm = home / ".cache" / "vllm" / "deep_gemm" / "cache" / "kernel.gemm.1"
    gemm.mkdir(parents=True)
    (gemm / "kernel.cubin").write_bytes(b"gemm")
    (root / "startup_plan").mkdir()
    (root / "startup_plan" / "plan.json").write_text("{}")
    data = published(root, ("USED-BEFORE", "NEW", "NEVER-MADE"))
    assert kernel_caches.told({}, root) == {
        "Triton kernels": {"brought": 0, "made": 1},
        "DeepGEMM kernels": {"brought": 0, "made": 1},
        "vLLM's start-up plan": {"brought": 0, "made": 1},
    }
    other = node("two")
    brought = restored(data, other / "root")
    assert brought == {
        "Triton kernels": {"brought": 2}, "DeepGEMM kernels": {"brought": 1}, "vLLM's start-up plan": {"brought": 1},
    }  # fmt: skip
    cache = other / ".triton" / "cache"
    assert sorted(p.name for p in cache.iterdir()) == ["NEW", "USED-BEFORE"]
    assert not (cache / "NEW" / "lock").exists()
    group = json.loads((cache / "NEW" / "__grp__add.json").read_text())["child_paths"]
    assert group == {name: str(cache / "NEW" / name) for name in ("add.cubin", "add.json")}
    assert Path(group["add.cubin"]).read_bytes() == b"cubin"
    assert (other / ".cache/vllm/deep_gemm/cache/kernel.gemm.1/kernel.cubin").read_bytes() == b"gemm"
    assert (other / "root" / "startup_plan" / "plan.json").exists()
    begin(other / "root", 9.0)
    (other / "root" / kernel_caches.USED / "NEW").touch()
    assert {found["made"] for found in kernel_caches.told(brought, other / "root").values()} == {0}


def test_nodes_that_are_made_ready_have_them_before_any_replica(node: Node) -> None:
    home = node("one")
    kernel(home, "K")
    kernel_caches.begin(home / "root")
    (home / "root" / "startup_plan").mkdir()
    (home / "root" / "startup_plan" / "plan.json").write_text("{}")
    data = published(home / "root", ("K",))
    other = node("two")
    _, payload = bundle.verify(memoryview(data), SIGNING, KEY, LIMITS)
    bundle.install(payload, other / "copy", LIMITS)
    assert kernel_caches.spread(other / "copy" / kernel_caches.PART, None) == {"Triton kernels": {"brought": 1}}
    assert (other / ".triton" / "cache" / "K" / "add.cubin").exists()


def test_what_is_there_stays_as_it_is(node: Node) -> None:
    home = node("one")
    kernel(home, "K", b"theirs")
    kernel_caches.begin(home / "root")
    data = published(home / "root", ("K",))
    other = node("two")
    mine = kernel(other, "K", b"mine")
    restored(data, other / "root")
    assert (mine / "add.cubin").read_bytes() == b"mine"


@pytest.mark.parametrize("open_one", [".triton/cache", ".triton/cache/K"])
def test_what_others_could_have_planted_is_not_published(open_one: str, node: Node) -> None:
    home = node("one")
    kernel(home, "K")
    (home / open_one).chmod(0o777)
    kernel_caches.begin(home / "root")
    published(home / "root", ("K",))
    assert not (home / "root" / kernel_caches.PART).exists()


def test_a_folder_that_others_may_write_to_gets_nothing(node: Node) -> None:
    """Their engines could not read, or replace, what is ours."""
    home = node("one")
    kernel(home, "K")
    kernel_caches.begin(home / "root")
    data = published(home / "root", ("K",))
    other = node("two")
    cache = other / ".triton" / "cache"
    cache.mkdir(parents=True)
    cache.chmod(0o777)
    found = restored(data, other / "root")
    assert found == {"Triton kernels": {"brought": 0, "why": f"others may write to {cache}"}}
    assert not list(cache.iterdir())
    assert kernel_lines(found) == [f"Triton kernels: 0 came with the graphs, 0 made here (others may write to {cache})"]


def test_links_are_not_followed(node: Node) -> None:
    home = node("one")
    (home / "secret").mkdir(parents=True)
    (home / "secret" / "add.cubin").write_bytes(b"secret")
    folder = kernel(home, "K")
    (folder / "link.cubin").symlink_to(home / "secret" / "add.cubin")
    (folder.parent / "LINK").symlink_to(home / "secret")
    kernel_caches.begin(home / "root")
    published(home / "root", ("K", "LINK"))
    found = {p.name for p in (home / "root" / kernel_caches.PART / "triton").rglob("*")}
    assert found == {"K", "add.cubin", "add.json", "__grp__add.json"}


def test_too_many_kernels_leave_room_for_graphs(node: Node) -> None:
    home = node("one")
    kernel(home, "LARGE", bytes(300 << 10))
    kernel(home, "SMALL")
    kernel_caches.begin(home / "root")
    published(home / "root", ("LARGE", "SMALL"))  # a quarter of what a bundle may have is 256 KiB
    assert [p.name for p in (home / "root" / kernel_caches.PART / "triton").iterdir()] == ["SMALL"]


@pytest.mark.parametrize("fault", ["no home", "a file", "no group"])
def test_what_goes_wrong_costs_kernels_alone(fault: str, node: Node) -> None:
    home = node("one")
    folder = kernel(home, "K")
    if fault == "no group":
        (folder / "__grp__add.json").write_text("[]")
    kernel_caches.begin(home / "root")
    data = published(home / "root", ("K",))
    other = node("two")
    if fault == "a file":
        (other / ".triton").parent.mkdir()
        (other / ".triton").write_text("")
    if fault == "no home":
        os.environ["HOME"] = "/dev/null"
    found = restored(data, other / "root")
    assert ("why" in found["Triton kernels"]) == (fault != "no group")


def test_an_engine_that_has_no_such_start_packs_nothing(node: Node) -> None:
    home = node("one")
    kernel(home, "K")
    assert kernel_caches.collect(home / "root", LIMITS) == []
    assert kernel_caches.told({}, home / "root") == {}


@pytest.fixture
def triton(monkeypatch) -> type:
    """Triton's own manager, as far as its first step."""

    class FileCacheManager:
        def __init__(self, key: str, override: bool = False, dump: bool = False) -> None:
            self.key = key

    runtime = types.ModuleType("triton.runtime.cache")
    runtime.FileCacheManager = FileCacheManager  # type: ignore[attr-defined]
    for name, module in {
        "triton": types.ModuleType("triton"),
        "triton.runtime": types.ModuleType("triton.runtime"),
    }.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(sys.modules, runtime.__name__, runtime)
    monkeypatch.delitem(sys.modules, "orchestrator.vllm_plugin.triton_cache", raising=False)
    return FileCacheManager


def supervisor(folder: Path, **given: bool) -> Supervisor:
    root = folder / "scratch" / "cache"
    root.mkdir(parents=True)
    known = {"cpu": False, "share_kernels": True, **given}
    found = Supervisor(EngineSpec("r", "m", {}, {}, str(root.parent), str(root), 9.0, **known))
    found.enter()
    return found


def test_triton_notes_what_an_engine_asks_for(node: Node, triton: type, monkeypatch) -> None:
    home = node("one")
    supervised = supervisor(home)
    supervised._record_kernels()
    supervised.begin(restored=False)
    module, _, name = os.environ["TRITON_CACHE_MANAGER"].partition(":")
    manager = getattr(importlib.import_module(module), name)
    assert issubclass(manager, triton)
    manager("A"), manager("B", override=False), manager("C", override=True), manager("D", dump=True), manager("../E")
    used = Path(os.environ["ORCHESTRATOR_KERNELS_USED"])
    assert used.parent == home / "scratch" / "cache"
    assert sorted(p.name for p in used.iterdir()) == [".began", "A", "B", "E"]
    copied = os.environ["VLLM_RAY_EXTRA_ENV_VARS_TO_COPY"].split(",")
    assert {"TRITON_CACHE_MANAGER", "TRITON_CACHE_DIR", "DG_JIT_CACHE_DIR", "ORCHESTRATOR_KERNELS_USED"} <= {*copied}
    supervised.end()


@pytest.mark.parametrize("why", ["the user has one", "another Triton"])
def test_a_triton_that_cannot_note_is_left_alone(why: str, node: Node, triton: type, monkeypatch) -> None:
    home = node("one")
    if why == "the user has one":
        os.environ["TRITON_CACHE_MANAGER"] = "theirs:Manager"
    else:
        monkeypatch.delattr(sys.modules["triton.runtime.cache"], "FileCacheManager")
    supervised = supervisor(home)
    supervised._record_kernels()
    theirs = "theirs:Manager" if why == "the user has one" else None
    assert os.environ.get("TRITON_CACHE_MANAGER") == theirs
    assert "ORCHESTRATOR_KERNELS_USED" not in os.environ
    supervised.end()


@pytest.mark.parametrize("off", [{"share_kernels": False}, {"cpu": True}, {"stock": True}])
def test_without_it_no_start_is_noted(off: dict, node: Node) -> None:
    home = node("one")
    supervised = supervisor(home, **off)
    supervised.begin(restored=False)
    assert kernel_caches.collect(home / "scratch" / "cache", LIMITS) == []
    supervised.end()
