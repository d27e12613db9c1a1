"""When an engine's processes are forks, and what a fork takes over from the environment that its parent has now."""

from __future__ import annotations

import logging
import os
import sys
from types import ModuleType

import pytest

from orchestrator.engine.vllm import fork_context
from tests.unit.commands import run


@pytest.mark.parametrize(
    ("variable", "value", "forks"),
    [
        ("VLLM_USE_BREAKABLE_CUDAGRAPH", "1", False),
        ("VLLM_USE_BREAKABLE_CUDAGRAPH", "0", True),
        ("VLLM_BATCH_INVARIANT", "1", False),
        ("VLLM_USE_LAYERNAME", "0", False),
        ("VLLM_USE_LAYERNAME", "1", True),
    ],
)
def test_what_was_decided_at_import_is_not_forked_for_another_decision(
    variable: str, value: str, forks: bool, monkeypatch, caplog
) -> None:
    """vLLM sets the first one while it makes the configuration: the zygote imported attention before."""
    for name in fork_context._AT_IMPORT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(fork_context, "_imported_with", fork_context._decided())
    monkeypatch.setitem(os.environ, variable, value)
    fork_context._say_once.cache_clear()
    monkeypatch.setattr(logging.getLogger("vllm"), "propagate", True)
    with caplog.at_level("WARNING", "vllm.orchestrator"):
        context = fork_context.context()
    assert isinstance(context, fork_context.PreloadedContext) == forks
    assert context.get_start_method() == ("forkserver" if forks else "spawn")
    assert (f"no forks: vLLM was imported without {variable}={value}" in caplog.text) != forks


def test_vllm_asks_anew_each_time_it_starts_a_process(monkeypatch) -> None:
    """The configuration is made long after the fork was born."""
    pytest.importorskip("vllm")
    from vllm.utils import system_utils
    from vllm.v1.engine import coordinator, utils
    from vllm.v1.executor import multiproc_executor

    modules = (system_utils, coordinator, utils, multiproc_executor)
    for module in modules:
        monkeypatch.setattr(module, "get_mp_context", module.get_mp_context)
    monkeypatch.delenv("VLLM_USE_BREAKABLE_CUDAGRAPH", raising=False)
    monkeypatch.setattr(fork_context, "_imported_with", fork_context._decided())
    fork_context.use_in_this_process()
    assert {module.get_mp_context().get_start_method() for module in modules} == {"forkserver"}
    monkeypatch.setenv("VLLM_USE_BREAKABLE_CUDAGRAPH", "1")
    assert {module.get_mp_context().get_start_method() for module in modules} == {"spawn"}


def test_a_fork_asks_for_its_own_devices_capability(monkeypatch) -> None:
    """Ray gives each worker a GPU of its own, and vLLM remembers the capability of "device 0"."""
    pytest.importorskip("vllm")
    monkeypatch.setitem(sys.modules, "vllm._C_stable_libtorch", ModuleType("kernels"))  # of the build for GPUs
    from vllm.platforms import cuda

    for name in ("nvmlInit", "nvmlShutdown"):
        monkeypatch.setattr(cuda.pynvml, name, lambda: None)
    monkeypatch.setattr(cuda.pynvml, "nvmlDeviceGetHandleByIndex", lambda index: index)
    monkeypatch.setattr(cuda.pynvml, "nvmlDeviceGetCudaComputeCapability", lambda handle: (8 + handle, 0))
    platform = cuda.NvmlCudaPlatform
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    fork_context.forget_device()
    assert platform.get_device_capability().major == 8
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert platform.get_device_capability().major == 8
    fork_context.forget_device()
    assert platform.get_device_capability().major == 9
    fork_context.forget_device()


@pytest.mark.parametrize(("said", "offline"), [({"HF_HUB_OFFLINE": "1"}, True), ({}, False)])
def test_a_start_is_offline_by_what_its_environment_says_now(said: dict, offline: bool, monkeypatch) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", not offline)
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    fork_context.offline_as_told()
    assert constants.is_offline_mode() == offline


FORKS = """
from orchestrator.engine.vllm import fork_context
from tests.unit.commands import run
fork_context._adopt_environment = lambda: None  # it imports vLLM
fork_context.fork_server()
process = fork_context.PreloadedContext().Process(target=print, args=("forked",), kwargs={"flush": True})
process.start()
process.join()
"""


def test_engines_are_forked_though_tmpdir_is_long(tmp_path) -> None:
    folder = tmp_path / ("x" * 120)
    folder.mkdir()
    done = run("-c", FORKS, TMPDIR=str(folder))
    assert "forked" in done.stdout, done.stderr
