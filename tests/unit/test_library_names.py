"""Inductor's libraries have the same names wherever the Python environment is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.vllm_plugin import library_names
from tests.unit.commands import ROOT

PROGRAM = """
import json, sys
from torch._inductor import codecache, cpp_builder
from orchestrator.vllm_plugin import library_names

options = cpp_builder.CppTorchDeviceOptions(device_type="cpu")
command = cpp_builder.CppBuilder(name="o", sources="i", BuildOption=options).get_command_line()
assert f"{sys.prefix}/" in command
plain = codecache.code_hash("source", command)
library_names.install()
library_names.install()
names = [codecache.code_hash("source", command), codecache.code_hash("source", command + " -O2"),
         codecache.code_hash("other", command), codecache.code_hash("source", b"bytes")]
print(json.dumps([plain, *names]))
"""


def names(environment: Path) -> list[str]:
    command = [str(environment / "bin" / "python"), "-c", PROGRAM]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: list[str] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.skipif(sys.prefix == sys.base_prefix, reason="Python is in no virtual environment that could be moved")
def test_an_environment_that_is_elsewhere_finds_the_same_libraries(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    (tmp_path / "moved").symlink_to(sys.prefix)
    here, there = names(Path(sys.prefix)), names(tmp_path / "moved")
    assert here[0] != there[0]  # as Inductor does it
    assert here[1:] == there[1:]
    assert len(set(here)) == len(here)  # flags and sources count as before


def test_an_environment_within_another_folder_of_python_is_one_place() -> None:
    places = library_names._places(Path("/opt/python/env/lib/site-packages/torch"))
    order = list(places)
    assert order == sorted(order, key=len, reverse=True)
    line = "g++ -I/opt/python/env/lib/site-packages/torch/include -Ielsewhere"
    assert library_names.without_places(line, places) == "g++ -I<TORCH>/include -Ielsewhere"
