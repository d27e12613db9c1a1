"""Engines that save no graphs do not ask the registry: they would lead one after another, and the others wait."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.graph_cache.client import GraphCacheClient
from orchestrator.graph_cache.restore_result import Outcome
from orchestrator.timeline import EngineFacts, EventLog


def config(mode: int = 3, backend: str = "inductor", transformers: bool = False, **inductor: Any) -> Any:
    compilation = SimpleNamespace(mode=mode, backend=backend, inductor_compile_config=inductor)
    model = SimpleNamespace(using_transformers_backend=lambda: transformers)
    return SimpleNamespace(compilation_config=compilation, model_config=model)


@pytest.mark.parametrize(
    ("made", "environment", "gpu", "reason"),
    [
        (config(), {}, True, ""),
        (config(mode=0), {}, True, "vLLM's compilation mode is NONE"),
        (config(mode=0), {"VLLM_USE_BREAKABLE_CUDAGRAPH": "1"}, True, "vLLM's compilation mode is NONE"),
        (config(mode=2), {}, True, "vLLM's compilation mode is DYNAMO_TRACE_ONCE"),
        (config(backend="eager"), {}, True, 'the compilation backend "eager" saves nothing'),
        (config(force_disable_caches=True), {}, True, "the compile cache is disabled"),
        (config(), {"VLLM_DISABLE_COMPILE_CACHE": "1"}, True, "the compile cache is disabled"),
        (config(), {"VLLM_USE_AOT_COMPILE": "0"}, True, "VLLM_USE_AOT_COMPILE is off"),
        (config(), {"VLLM_BATCH_INVARIANT": "1"}, True, "VLLM_BATCH_INVARIANT switches ahead-of-time compile off"),
        (config(), {"VLLM_BATCH_INVARIANT": "1"}, False, ""),
    ],
)
def test_only_engines_that_save_graphs_share_them(made: Any, environment: dict, gpu: bool, reason: str, monkeypatch):
    pytest.importorskip("vllm.compilation.compiler_interface")
    from vllm.platforms import current_platform

    from orchestrator.engine.vllm import compile_key

    monkeypatch.setattr(type(current_platform), "is_cpu", lambda _: not gpu)
    monkeypatch.setattr(compile_key, "compile_factors", lambda _: {"vllm": "0.32"})
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found = compile_key.compile_key(made)
    assert found.unshared.startswith(reason)
    assert bool(found.unshared) == bool(reason)
    assert dict(found.factors) == ({} if reason else {"vllm": "0.32"})


@pytest.mark.parametrize(("version", "shared"), [("0.32.0", True), ("0.33.0", False)])
def test_since_033_models_that_run_through_transformers_save_no_graphs(version: str, shared: bool, monkeypatch) -> None:
    vllm = pytest.importorskip("vllm")
    pytest.importorskip("vllm.compilation.compiler_interface")
    from orchestrator.engine.vllm import compile_key

    monkeypatch.setattr(vllm, "__version__", version)
    reason = "this vLLM saves no graphs of models that run through Transformers"
    assert compile_key.why_unshared(config(transformers=True)) == ("" if shared else reason)
    assert compile_key.why_unshared(config()) == ""


def test_the_registry_is_not_asked_and_the_receipt_says_why(tmp_path: Path) -> None:
    settings: Any = SimpleNamespace(registry=object())  # it has no method to call
    client = GraphCacheClient(settings, "replica-0", EventLog(tmp_path / "events.jsonl"))
    receipt = client.restore({}, tmp_path, "the compile cache is disabled")
    assert (receipt.outcome, receipt.reason, receipt.key) == (Outcome.stock, "the compile cache is disabled", "")
    assert client.publish(receipt, EngineFacts(), tmp_path) == receipt
    client.abandon(receipt)


def test_the_registry_needs_nobodys_classes_to_read_a_key(tmp_path: Path) -> None:
    class Version(str):  # as torch.__version__: who reads it imports torch
        __slots__ = ()

    asked: list[Any] = []

    class Acquire:
        @staticmethod
        def remote(*words: Any) -> None:
            asked.extend(words)
            raise ConnectionError("seen enough")

    settings: Any = SimpleNamespace(registry=SimpleNamespace(acquire=Acquire), wait_s=1.0)
    client = GraphCacheClient(settings, "replica-0", EventLog(tmp_path / "events.jsonl"))
    receipt = client.restore({Version("torch"): Version("2.13.0")}, tmp_path)
    assert receipt.reason == "ConnectionError: seen enough"
    assert asked[:2] == [receipt.key, {"torch": "2.13.0"}]
    assert {type(word) for pair in asked[1].items() for word in pair} == {str}
