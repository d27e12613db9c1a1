"""While a zygote imports, questions about GPUs are answered by another process; here a program plays it."""

from __future__ import annotations

import functools
import importlib
import json
import subprocess
import sys
import types
from pathlib import Path

import pytest

from orchestrator import compat
from orchestrator.compat import lookup, patching, table
from tests.unit.commands import ROOT
from tests.waiting import wait_for

torch = pytest.importorskip("torch")
from orchestrator.engine.vllm import cuda_driver, device_answers, read_devices  # noqa: E402

GPU = {"name": "NVIDIA H100", "major": 9, "minor": 0, "multi_processor_count": 132, "uuid": "a", "pci_bus_id": 1}
SAME = {**GPU, "uuid": "b", "pci_bus_id": 2}
SMALLER = {**SAME, "multi_processor_count": 114}
QUESTIONS = (
    "device_count", "is_available", "current_device", "get_device_properties", "get_device_capability",
    "get_device_name",
)  # fmt: skip
# As FlashInfer does: what it is told when it is imported, it keeps; and it keeps functions.
ASKS = """
import functools
import torch
from torch.cuda import get_device_capability as held
archs = {torch.cuda.get_device_capability(device) for device in range(torch.cuda.device_count())}
name, sms = torch.cuda.get_device_name(), torch.cuda.get_device_properties("cuda").multi_processor_count
current, there, on_second = torch.cuda.current_device(), torch.cuda.is_available(), held(torch.device("cuda:1"))
later = functools.cache(torch.cuda.get_device_capability)
"""


@pytest.fixture
def program(tmp_path: Path, monkeypatch):
    """Sets what the other process finds; the file `runs` beside it has a line for each run, with its environment."""

    def found(source: str) -> Path:
        path = tmp_path / "reader.py"
        runs = tmp_path / "runs"
        path.write_text(
            f"import json, os\nwith open({str(runs)!r}, 'a') as log:\n"
            f"    print(os.environ.get('CUDA_VISIBLE_DEVICES'), file=log)\n{source}\n"
        )
        monkeypatch.setattr(device_answers, "PROGRAM", path)
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        return runs

    return found


@pytest.fixture
def real(monkeypatch) -> list[str]:
    """torch's own functions, as plain as they are there, and each call that reached one."""
    calls: list[str] = []
    for name in QUESTIONS:
        takes = "" if name in QUESTIONS[:3] else "device=None"
        made: dict = {"calls": calls}
        exec(f"def {name}({takes}):\n    calls.append({name!r})\n    return 'CUDA itself'", made)
        monkeypatch.setattr(torch.cuda, name, made[name])
    return calls


@pytest.fixture(autouse=True)
def untouched(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)


@pytest.fixture
def asks(tmp_path: Path, monkeypatch):
    """Imports a module that asks for GPUs; of a source."""

    def imported(source: str = ASKS) -> types.ModuleType:
        (tmp_path / "asks_for_gpus.py").write_text(source)
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, "asks_for_gpus", raising=False)
        return importlib.import_module("asks_for_gpus")

    yield imported
    sys.modules.pop("asks_for_gpus", None)


def says(*devices: dict) -> str:
    return f"print('a line of some library')\nprint({json.dumps(list(devices))!r})"


def test_imports_are_answered_by_one_other_process_and_torch_by_none(program, real, asks) -> None:
    runs = program(says(GPU, SAME))
    before = {name: (getattr(torch.cuda, name), getattr(torch.cuda, name).__code__) for name in QUESTIONS}
    with device_answers.imports_without_a_device():
        module = asks()
    assert (module.archs, module.name, module.sms) == ({(9, 0)}, "NVIDIA H100", 132)
    assert (module.current, module.there, module.on_second) == (0, True, (9, 0))
    assert real == []
    assert len(runs.read_text().splitlines()) == 1
    assert {name: (getattr(torch.cuda, name), getattr(torch.cuda, name).__code__) for name in QUESTIONS} == before


def test_whoever_keeps_a_function_has_torchs_own_afterwards(program, real, asks) -> None:
    """Dynamo looks functions up in its lists, and Triton keeps one: a stand-in would stay there."""
    program(says(GPU, SAME))
    with device_answers.imports_without_a_device():
        module = asks()
    assert module.held is torch.cuda.get_device_capability
    assert (module.held(0), module.later(0), torch.cuda.device_count()) == ("CUDA itself",) * 3
    assert real == ["get_device_capability", "get_device_capability", "device_count"]


def test_what_an_import_raises_leaves_torch_as_it_was(program, real, asks) -> None:
    program(says(GPU))
    with pytest.raises(ZeroDivisionError), device_answers.imports_without_a_device():
        asks("import torch\ntorch.cuda.device_count()\n1 / 0")
    assert torch.cuda.device_count() == "CUDA itself"


@pytest.mark.parametrize("caught", ["", "try:\n    {}\nexcept BaseException:\n    pass"], ids=["", "caught"])
@pytest.mark.parametrize(
    ("found", "line"),
    [
        (says(GPU, SMALLER), "this node's GPUs differ (multi_processor_count), and an import asks for the GPU's kind"),
        ("raise OSError('no driver')", "a process that asks for the GPUs failed: OSError: no driver"),
        ("import time; time.sleep(600)", "a process that asks for the GPUs took more than 1 s"),
    ],
)
def test_there_is_no_zygote_where_the_answer_may_not_hold(
    caught, found, line, program, real, asks, monkeypatch
) -> None:
    program(found)
    monkeypatch.setattr(device_answers, "_READ_S", 1.0)
    question = "torch.cuda.get_device_capability()"
    source = f"import torch\n{caught.format(question) if caught else question}"
    with pytest.raises(SystemExit) as refusal, device_answers.imports_without_a_device():
        asks(source)
    assert str(refusal.value) == f"{line}; set cold_start.preload=false"
    assert real == []


def test_other_gpus_do_not_matter_where_nobody_asks_for_their_kind(program, real, asks) -> None:
    program(says(GPU, SMALLER))
    with device_answers.imports_without_a_device():
        module = asks("import torch\nfound = torch.cuda.is_available(), torch.cuda.device_count()")
    assert module.found == (True, 2)


def test_no_gpu_is_what_torch_says_of_none(program, real, asks) -> None:
    program(says())
    source = (
        "import torch\ntry:\n    torch.cuda.get_device_capability(0)\nexcept AssertionError as error:\n    said = error"
    )
    with device_answers.imports_without_a_device():
        module = asks(f"{source}\nfound = torch.cuda.is_available(), torch.cuda.device_count()")
    assert (str(module.said), module.found) == ("Invalid device id", (False, 0))


def test_the_gpus_are_those_of_the_raylet_not_of_the_worker_that_came_first(program, real, monkeypatch) -> None:
    runs = program(says(GPU))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    raylet = subprocess.Popen(["sleep", "600"], env={"PATH": "/bin:/usr/bin", "CUDA_VISIBLE_DEVICES": "2,3"})
    try:
        wait_for(Path(f"/proc/{raylet.pid}/environ").read_bytes)  # empty until its exec has come to an end
        for variable, value in (("RAY_RAYLET_PID", str(raylet.pid)), ("RAY_RAYLET_PID", "")):
            monkeypatch.setenv(variable, value)
            with device_answers.imports_without_a_device():
                assert torch.cuda.is_available()
    finally:
        raylet.kill()
        raylet.wait()
    assert runs.read_text().splitlines() == ["2,3", "None"]


@pytest.mark.parametrize(("of_torch", "of_driver"), [(True, ""), (False, "the CUDA driver answers 0")])
def test_what_touches_a_gpu_all_the_same_means_no_zygote(of_torch, of_driver, program, real, monkeypatch) -> None:
    program(says(GPU))
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: of_torch)
    monkeypatch.setattr(cuda_driver, "initialised", lambda: of_driver)
    with pytest.raises(SystemExit, match="touched a GPU"), device_answers.imports_without_a_device():
        pass


def test_an_import_within_an_import_is_part_of_it(program, real, asks) -> None:
    """A service's zygote imports its own modules, and an engine's."""
    runs = program(says(GPU))
    with device_answers.imports_without_a_device():
        with device_answers.imports_without_a_device():
            assert torch.cuda.get_device_name() == "NVIDIA H100"
        assert torch.cuda.device_count() == 1
    assert torch.cuda.device_count() == "CUDA itself"
    assert len(runs.read_text().splitlines()) == 1


def test_a_build_without_cuda_starts_no_process(program, monkeypatch) -> None:
    runs = program(says(GPU))
    monkeypatch.setattr(torch.version, "cuda", None)
    with device_answers.imports_without_a_device():
        assert not torch.cuda.is_available()
    assert not runs.exists()


def test_a_function_that_is_not_as_we_know_it_is_left_alone(program, real, monkeypatch) -> None:
    program(says(GPU))
    monkeypatch.setattr(patching, "_notes", [])
    monkeypatch.setattr(torch.cuda, "device_count", functools.cache(torch.cuda.device_count))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "another")
    with device_answers.imports_without_a_device():
        assert torch.cuda.device_count() == "CUDA itself"
        assert torch.cuda.get_device_name(0) == "another"
        assert torch.cuda.get_device_capability(0) == (9, 0)
    assert compat.notes() == (
        "imports without a device off: cuda.device_count is no plain function",
        "imports without a device off: cuda.get_device_name takes (index), we know (device)",
    )
    assert table.DEVICE_CAPABILITY not in lookup.originals


def test_the_other_process_prints_what_torch_says() -> None:
    properties = types.SimpleNamespace(name="NVIDIA H100", major=9, uuid=types.SimpleNamespace(), ask=print)
    found = read_devices.facts(properties)
    assert json.loads(json.dumps(found)) == found
    assert found.keys() == {"name", "major", "uuid"}
    done = subprocess.run(
        [sys.executable, "-P", str(device_answers.PROGRAM)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    if not torch.cuda.is_available():
        assert json.loads(done.stdout) == []
