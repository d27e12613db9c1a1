"""Another vLLM than the tested one is left alone, and an engine that asks for the plugin is refused in one line."""

from __future__ import annotations

import sys
import types

import pytest

from orchestrator import vllm_plugin


class EngineArgs:
    def __init__(self, additional_config: dict[str, object] | None = None) -> None:
        self.additional_config = additional_config or {}

    def create_engine_config(self) -> str:
        return "a configuration"


@pytest.mark.parametrize("version", ["0.29.0", "0.31.1", "0.33.0", "0.3.2", "1.32.0"])
def test_an_untested_vllm_is_refused_only_when_asked(version: str, monkeypatch) -> None:
    vllm, engine, arguments = types.ModuleType("vllm"), types.ModuleType("e"), types.ModuleType("a")
    vllm.__version__ = version
    arguments.EngineArgs = type("EngineArgs", (EngineArgs,), {})
    for name, module in {"vllm": vllm, "vllm.engine": engine, "vllm.engine.arg_utils": arguments}.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(vllm_plugin, "_registered", False)
    vllm_plugin.register()
    assert arguments.EngineArgs().create_engine_config() == "a configuration"
    asking = arguments.EngineArgs({"orchestrator": {"kv_update": "layer_index"}})
    with pytest.raises(ValueError, match=rf"is tested with vLLM 0\.32, and this is {version}: install vllm==0\.32\.0"):
        asking.create_engine_config()
