"""What benchmarks compare ours with."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.bench import baseline, startup
from orchestrator.cluster.shape import ClusterShape, Node
from orchestrator.config import AppConfig, Device, sources
from orchestrator.fleet.plan import Plan, make_plan
from orchestrator.graph_cache import kernel_caches


@pytest.fixture
def app() -> AppConfig:
    return sources.composed(["model=tiny_llama"])


def plan_of(app: AppConfig, way: str) -> Plan:
    return make_plan(baseline.cell(app, way), ClusterShape((Node(8.0),)), model="/model", scratch="/scratch")


def test_stock_has_no_plugin(app: AppConfig) -> None:
    (spec, *_) = [replica.spec for replica in plan_of(app, "stock").replicas]
    assert spec.stock
    assert "additional_config" not in spec.args
    assert spec.env["VLLM_PLUGINS"] == ""


def test_stock_as_on_gpus_has_the_piecewise_compile_and_nothing_else_of_ours(app: AppConfig) -> None:
    plan = plan_of(app, "stock_gpu_like")
    spec = plan.replicas[0].spec
    assert not plan.share_graphs
    assert spec.args["additional_config"]["orchestrator"] == {"kv_update": "layer_name", "trace_once": False}
    assert not any((spec.preload, spec.quick_cpu_probe, spec.short_profile, spec.overlap, spec.prestart_worker))


def test_both_have_one_cache_folder_for_all_replicas_as_vllm_has(app: AppConfig) -> None:
    for way in ("stock", "stock_gpu_like"):
        assert len({replica.spec.cache_root for replica in plan_of(app, way).replicas}) == 1
    assert len({replica.spec.cache_root for replica in plan_of(app, "ours").replicas}) == app.replicas


def test_on_gpus_stock_is_as_on_gpus(app: AppConfig) -> None:
    assert "stock_gpu_like" in baseline.ways(app)
    app.engine.device = Device.gpu
    assert baseline.ways(app) == ["stock", "ours"]
    names = {way.name for ways in startup.chosen(app) for way in ways}
    assert "stock_warm" in names
    assert not {name for name in names if "gpu_like" in name}


def test_a_service_without_sharing_uses_vllms_own_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path))
    assert kernel_caches.vllms_own_cache() == tmp_path
    monkeypatch.delenv("VLLM_CACHE_ROOT")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert kernel_caches.vllms_own_cache() == tmp_path / "vllm"
