"""Another vLLM than the tested one is left alone, and an engine that asks for the plugin is refused in one line."""

from __future__ import annotations

import re
import sys
import types

import pytest
from hydra import compose, initialize_config_dir

from orchestrator import compat, vllm_plugin
from orchestrator.compat import lookup, table, versions
from orchestrator.config import load
from orchestrator.errors import ConfigError
from tests.conftest import CONF


class EngineArgs:
    def __init__(self, additional_config: dict[str, object] | None = None) -> None:
        self.additional_config = additional_config or {}

    def create_engine_config(self) -> str:
        return "a configuration"


@pytest.mark.parametrize("version", ["0.28.1", "0.34.0", "0.3.2", "1.32.0", "0.1.dev1+g0123", "dev", "3.0"])
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
    with pytest.raises(
        ValueError, match=rf"works with vLLM 0\.29 to 0\.33, and this is {re.escape(version)}: install one"
    ):
        asking.create_engine_config()


@pytest.mark.parametrize("version", ["0.29.0", "0.30.2", "0.31", "0.32.0+cpu", "0.33.1.dev4+g0123"])
def test_the_plugin_is_made_for_these(version: str) -> None:
    assert versions.supported(version)


def test_what_an_older_vllm_has_not_got_yet_is_no_fault(monkeypatch) -> None:
    vllm, config = types.ModuleType("vllm"), types.ModuleType("vllm.config")
    config.AttentionConfig = type("AttentionConfig", (), {})
    for name, module in {"vllm": vllm, "vllm.config": config}.items():
        monkeypatch.setitem(sys.modules, name, module)
    for version, line in {"0.29.0": "", "0.30.0": "AttentionConfig.hisparse_config is gone"}.items():
        vllm.__version__ = version
        assert lookup.fault(table.HISPARSE, load=True) == line
        assert compat.of_this_vllm(table.HISPARSE) is bool(line)
    assert compat.read(table.HISPARSE, config.AttentionConfig()) is None


@pytest.mark.parametrize(
    ("version", "words", "refused"),
    [
        ("0.34.0", (), True),
        ("0.28.1", ("fast_cold_start=true",), True),
        ("0.34.0", ("fast_cold_start=false",), False),
        ("0.34.0", ("engine=fake",), False),
        ("0.33.0", (), False),
        ("", (), False),
    ],
)
def test_a_job_is_refused_before_anything_starts(
    version: str, words: tuple, refused: bool, tmp_path, monkeypatch
) -> None:
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm" / "__init__.py").write_text("raise SystemExit('imported')")
    if version:
        (tmp_path / "vllm" / "_version.py").write_text(f"__version__ = version = '{version}'\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with initialize_config_dir(CONF, version_base="1.3"):
        composed = compose("config", overrides=["model=tiny_llama", *words])
    if not refused:
        load(composed)
        return
    line = f"This environment has vLLM {version}, and fast_cold_start works with vLLM 0.29 to 0.33."
    with pytest.raises(ConfigError, match=re.escape(line)) as error:
        load(composed)
    assert error.value.where == "fast_cold_start"
