"""A week of starts and kills in fast motion: nothing of a killed replica stays on its node."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from orchestrator.engine.vllm import reaper
from orchestrator.graph_cache.folders import make_private
from orchestrator.graph_cache.node_cache import NodeCopies
from tests.commands.killed_replicas import LIMITS, payload
from tests.unit.commands import ROOT
from tests.waiting import HANG_S, wait_for

HOURS = 168 if os.environ.get("ORCHESTRATOR_TEST_ALL") else 24  # of a week, of a day


def reapers(folder: Path) -> list[str]:
    found = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
    return [word for words in found for word in words if word.startswith(str(folder))]


def ignores(pid: int, number: signal.Signals) -> bool:
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigIgn")]
    return bool(int(line.split()[1], 16) >> (number - 1) & 1)


def test_nothing_of_killed_replicas_stays(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.commands.killed_replicas", str(tmp_path), str(HOURS)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=HANG_S, check=False)
    assert done.returncode == 0, done.stderr
    wait_for(lambda: not reapers(tmp_path), lambda: str(reapers(tmp_path)))
    NodeCopies(str(tmp_path / "node"), 1 << 20).link("next", tmp_path / "next", payload, LIMITS)
    left = sorted(path.name for path in (tmp_path / "node").iterdir() if path.suffix != ".lock")
    assert [name for name in left if name.startswith(".")] == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lived", "next", "node"]


def test_folders_are_closed_all_the_way(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        make_private(tmp_path / "orchestrator-1" / "replica-0" / "cache")
    finally:
        os.umask(before)
    for folder in tmp_path.rglob("*"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_the_reaper_needs_only_the_standard_library() -> None:
    """Its environment may be gone, and it must not cost a start the import of anything."""
    script = "import sys, runpy; runpy.run_path(sys.argv[1]); print(*{n.partition('.')[0] for n in sys.modules})"
    command = [sys.executable, "-I", "-S", "-c", script, reaper.__file__]
    loaded = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S, check=True).stdout.split()
    assert set(loaded) <= sys.stdlib_module_names | {"__main__", "sitecustomize"}


@pytest.mark.parametrize("alone", [True, False])
def test_a_runs_folder_goes_with_its_last_replica(alone: bool, tmp_path: Path) -> None:
    scratch = tmp_path / "orchestrator-1" / "replica-0"
    make_private(scratch)
    if not alone:
        make_private(scratch.with_name("replica-1"))
    reaper.remove_folder(scratch)
    assert not scratch.exists()
    assert scratch.parent.exists() != alone


def test_the_reaper_removes_although_it_is_told_to_end_first(tmp_path: Path) -> None:
    """A machine that shuts down tells everyone at once."""
    (folder := tmp_path / "scratch").mkdir()
    script = (
        "import sys, time; from orchestrator.engine.vllm import reaper\n"
        "print(reaper.start_reaper(remove=sys.argv[1]).process.pid, flush=True); time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", script, str(folder)], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert parent.stdout is not None
    watching = psutil.Process(int(parent.stdout.readline()))
    wait_for(lambda: ignores(watching.pid, signal.SIGTERM))
    watching.terminate()
    parent.kill()
    parent.wait()
    wait_for(lambda: not folder.exists())
