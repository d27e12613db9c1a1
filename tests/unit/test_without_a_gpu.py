"""What the GPU paths do that can be seen where there is none."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from orchestrator.cluster import provenance
from orchestrator.engine.contract import EngineSpec
from orchestrator.engine.vllm.supervisor import Supervisor


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


@pytest.mark.parametrize(
    ("stock", "cpu", "before", "expected"),
    [
        (False, False, None, ".triton/cache"),
        (False, False, "/mine", "/mine"),
        (True, False, None, None),
        (False, True, None, None),
    ],
)
def test_engines_of_a_node_share_tritons_cache(stock, cpu, before, expected, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(os, "environ", {**os.environ, "HOME": str(tmp_path)})
    os.environ.pop("TRITON_CACHE_DIR", None)
    os.environ.pop("TRITON_HOME", None)
    if before:
        os.environ["TRITON_CACHE_DIR"] = before
    spec = EngineSpec(
        replica="r",
        model="m",
        args={},
        env={},
        scratch=str(tmp_path),
        cache_root="c",
        start_timeout_s=9,
        stock=stock,
        cpu=cpu,
    )
    Supervisor(spec).enter()
    found = os.environ.get("TRITON_CACHE_DIR")
    assert found == (str(tmp_path / expected) if expected and not before else before)
