"""A fork's threads and cores are what libgomp would have made of the environment."""

from __future__ import annotations

import logging
import os
import subprocess
import sys

import pytest

from orchestrator.engine.vllm import openmp
from tests.unit.commands import ROOT


@pytest.mark.parametrize(
    ("said", "cores"),
    [
        ("3", {3}),
        ("0 1 2", {0, 1, 2}),
        ("0-15", set(range(16))),
        ("0-15:2", set(range(0, 16, 2))),
        ("0,1,2", {0, 1, 2}),
        (" 0 3, 8-9 ,12-14:2 ", {0, 3, 8, 9, 12, 14}),
    ],
)
def test_cores_are_read_as_libgomp_reads_them(said: str, cores: set[int]) -> None:
    assert openmp.parse_cores(said) == cores


@pytest.mark.parametrize("said", ["{0,1}", "a", "3-1", "0-4:0", "0,,1", "0-", "-1", "0:2"])
def test_what_libgomp_would_not_understand_is_refused(said: str) -> None:
    with pytest.raises(ValueError, match="neither a core nor a range"):
        openmp.parse_cores(said)


PROGRAM = """
import os, torch
from orchestrator.engine.vllm import openmp
os.environ.update(dict(pair.split("=") for pair in {said!r}.split(";")))
before = torch.get_num_threads(), os.sched_getaffinity(0)
openmp.adopt()
after = torch.get_num_threads(), os.sched_getaffinity(0)
print("kept" if after == before else (after[0], sorted(after[1])))
"""
ONE = min(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (f"GOMP_CPU_AFFINITY={ONE}-{ONE}", f"(1, [{ONE}])"),
        (f"GOMP_CPU_AFFINITY={ONE};OMP_NUM_THREADS=3", f"(3, [{ONE}])"),
        ("OMP_NUM_THREADS=3,1", f"(3, {sorted(os.sched_getaffinity(0))})"),
        ("OMP_NUM_THREADS=all;GOMP_CPU_AFFINITY=0-", "kept"),
        ("GOMP_CPU_AFFINITY=1000", "kept"),
    ],
)
def test_a_fork_takes_them_over(said: str, expected: str) -> None:
    environment = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "GOMP_CPU_AFFINITY")}
    command = [sys.executable, "-c", PROGRAM.format(said=said)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == expected


def test_what_is_ignored_is_said(monkeypatch, caplog) -> None:
    pytest.importorskip("torch")
    monkeypatch.setattr(logging.getLogger("vllm"), "propagate", True)
    monkeypatch.setenv("GOMP_CPU_AFFINITY", "{0,1}")
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    openmp.adopt()
    assert "GOMP_CPU_AFFINITY='{0,1}' is ignored: '{0' is neither a core nor a range of cores" in caplog.text
    assert "OMP_NUM_THREADS='many' is ignored: 'many' is no number of threads" in caplog.text
