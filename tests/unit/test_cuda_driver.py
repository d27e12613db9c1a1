"""The driver itself is asked whether it was initialised; here a library with its name answers."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.commands import ROOT

PROGRAM = """
import ctypes, sys
if sys.argv[1:]:
    ctypes.CDLL(sys.argv[1])
from orchestrator.engine.vllm import cuda_driver
print(cuda_driver.initialised())
"""


def said(*libraries: str) -> str:
    command = [sys.executable, "-c", PROGRAM, *libraries]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def test_where_no_driver_is_loaded_nothing_was_touched() -> None:
    assert said() == ""


@pytest.mark.skipif(not shutil.which("gcc"), reason="makes a small library")
@pytest.mark.parametrize(("answer", "untouched"), [(3, True), (0, False), (100, False)])
def test_the_driver_is_believed(answer: int, untouched: bool, tmp_path: Path) -> None:
    """0: it was initialised. 100: that was tried, and there is no device."""
    library = tmp_path / "libcuda.so.1"
    source = f"int cuDeviceGetCount(int *count) {{ return {answer}; }}"
    subprocess.run(["gcc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(library)], input=source, text=True, check=True)
    assert said(str(library)) == (
        "" if untouched else f"the CUDA driver {library} answers {answer}, not 3 (not initialised)"
    )
