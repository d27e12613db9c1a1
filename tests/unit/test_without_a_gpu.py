"""What the GPU paths do that can be seen where there is none."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

import pytest

from orchestrator.cluster import provenance
from orchestrator.engine.contract import EngineSpec
from orchestrator.engine.start_report import StartReport
from orchestrator.engine.vllm.supervisor import Supervisor
from orchestrator.graph_cache.restore_result import Outcome, Receipt
from orchestrator.runs.warm import WarmResult
from orchestrator.timeline import EngineFacts


def test_the_machine_names_its_gpus(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "gpus" not in provenance.machine()
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA H100 80GB HBM3, 580.1'\n")
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    assert provenance.machine()["gpus"] == ["NVIDIA H100 80GB HBM3, 580.1"]
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert "gpus" not in provenance.machine()


def test_the_compile_key_asks_cuda_for_nothing(monkeypatch) -> None:
    torch = pytest.importorskip("torch")
    codecache = pytest.importorskip("torch._inductor.codecache")
    from orchestrator.engine.vllm.compile_key import _no_device_asked

    def asked() -> None:
        raise AssertionError("CUDA was initialised")

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "_lazy_init", asked)
    monkeypatch.setattr(codecache, "triton_key", lambda: "a key")
    before = codecache.CacheBase.__dict__["get_system"]
    with _no_device_asked():
        assert codecache.CacheBase.get_system() == {"triton": "a key", "cuda": "13.0"}
    assert codecache.CacheBase.__dict__["get_system"] is before


def entered(folder: Path, monkeypatch: pytest.MonkeyPatch, stock=False, cpu=False, **given: str) -> Path:
    """The cache root of an engine whose environment is set, in a home of its own."""
    environment = {**os.environ, "HOME": str(folder / "home"), **given}
    for name in {"TRITON_CACHE_DIR", "TRITON_HOME", "DG_JIT_CACHE_DIR", "VLLM_CACHE_ROOT", "XDG_CACHE_HOME"} - {*given}:
        environment.pop(name, None)
    monkeypatch.setattr(os, "environ", environment)
    root = folder / "scratch" / "cache"
    root.mkdir(parents=True)
    Supervisor(EngineSpec("r", "m", {}, {}, str(root.parent), str(root), 9.0, stock=stock, cpu=cpu)).enter()
    assert os.environ["VLLM_CACHE_ROOT"] == str(root)
    return root


@pytest.mark.parametrize(
    ("given", "kernels", "node"),
    [
        ({}, "home/.triton/cache", "home/.cache/vllm"),
        ({"TRITON_CACHE_DIR": "{}/mine", "XDG_CACHE_HOME": "{}/xdg"}, "mine", "xdg/vllm"),
        ({"VLLM_CACHE_ROOT": "{}/root"}, "home/.triton/cache", "root"),
    ],
)
def test_engines_of_a_node_share_what_is_no_part_of_a_bundle(given: dict, kernels, node, tmp_path, monkeypatch) -> None:
    """Else each start would make kernels of the model runner, DeepGEMM's and FlashInfer's tuning again."""
    root = entered(tmp_path, monkeypatch, **{name: value.format(tmp_path) for name, value in given.items()})
    assert os.environ["TRITON_CACHE_DIR"] == str(tmp_path / kernels)
    assert os.environ["DG_JIT_CACHE_DIR"] == str(tmp_path / node / "deep_gemm")
    (root / "modelinfos" / "a.json").write_text("{}")
    (root / "flashinfer_autotune_cache" / "0.7").mkdir()
    shutil.rmtree(tmp_path / "scratch")  # the engine's end
    assert (tmp_path / node / "modelinfos" / "a.json").exists()
    assert (tmp_path / node / "flashinfer_autotune_cache" / "0.7").exists()


@pytest.mark.parametrize("which", ["stock", "cpu"])
def test_stock_and_cpus_share_nothing(which: str, tmp_path: Path, monkeypatch) -> None:
    root = entered(tmp_path, monkeypatch, **{which: True})
    assert not {"TRITON_CACHE_DIR", "DG_JIT_CACHE_DIR"} & {*os.environ}
    assert not list(root.iterdir())
    assert not (tmp_path / "home").exists()


def test_a_home_that_one_may_not_write_to_costs_time_alone(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "home").write_text("no folder")
    assert not list(entered(tmp_path, monkeypatch).iterdir())


def test_flashinfer_counts_in_the_compile_key(tmp_path: Path, monkeypatch) -> None:
    """vLLM's fusions put its custom ops into graphs; vLLM uses it where there is a compiler for its kernels."""
    flashinfer = pytest.importorskip("vllm.utils.flashinfer")
    from orchestrator.engine.vllm.compile_key import _flashinfer

    monkeypatch.setattr(flashinfer, "has_flashinfer", lambda: False)
    assert _flashinfer() == "not used"
    installed = tmp_path / "flashinfer_python-0.7.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Name: flashinfer-python\nVersion: 0.7.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert _flashinfer() == "flashinfer-python 0.7.0, not used"
    monkeypatch.setattr(flashinfer, "has_flashinfer", lambda: True)
    assert _flashinfer() == "flashinfer-python 0.7.0, used"


@pytest.mark.parametrize(("tokens", "parity"), [((1000, 1000), True), ((1000, 985), True), ((1000, 900), False)])
def test_profiling_may_find_a_little_less_room_the_second_time(tokens: tuple[int, int], parity: bool) -> None:
    """GPUs without `engine.kv_cache_gib`: vLLM takes what is free, and a driver's own use changes."""
    first, second = (StartReport("r", 1.0, Receipt(Outcome.hit), EngineFacts(kv_tokens=n), (), 1) for n in tokens)
    assert WarmResult("m", first, second, "").kv_parity == parity
