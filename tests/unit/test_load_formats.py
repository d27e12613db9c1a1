"""`engine.load_format`: what a loader needs is looked at before a start."""

from __future__ import annotations

from typing import get_args

import pytest

from orchestrator.config import AppConfig, load_formats
from orchestrator.config.enums import Device, EngineKind
from orchestrator.config.load_formats import FORMATS
from orchestrator.engine.arguments import engine_args
from orchestrator.errors import ConfigError


@pytest.fixture
def here(monkeypatch) -> list[str]:
    """The modules that are installed; nothing else registers loaders."""
    modules = ["vllm"]
    monkeypatch.setattr(load_formats, "_here", lambda module: module in modules)
    monkeypatch.setattr(load_formats, "_other_plugins", list)
    return modules


def app(name: str, device: Device = Device.gpu, weights: bool = True) -> AppConfig:
    found = AppConfig()
    found.engine.load_format, found.engine.device, found.model.weights = name, device, weights
    return found


def test_all_of_vllms_are_known() -> None:
    vllm = pytest.importorskip("vllm.model_executor.model_loader")
    assert {*get_args(vllm.LoadFormats)} - {*FORMATS} == {"dummy"}


@pytest.mark.parametrize(
    ("name", "more", "line"),
    [
        ("fastsafetensors", {"device": Device.cpu}, "engine.load_format=fastsafetensors loads onto GPUs alone."),
        ("fastsafetensors", {}, "engine.load_format=fastsafetensors needs the package fastsafetensors."),
        ("runai_streamer", {}, "engine.load_format=runai_streamer needs the package runai-model-streamer."),
        ("safetensor", {}, "engine.load_format=safetensor is no load format of vLLM's."),
        ("dummy", {}, "engine.load_format=dummy is what model.weights=false sets."),
        ("pt", {"weights": False}, "engine.load_format=pt loads weights, and model.weights=false has none."),
    ],
)  # fmt: skip
def test_what_is_missing_is_one_line(name: str, more: dict, line: str, here: list[str]) -> None:
    with pytest.raises(ConfigError) as refused:
        load_formats.check(app(name, **more))
    assert refused.value.message == line
    assert refused.value.where == "engine.load_format"
    assert refused.value.hint


def test_what_is_there_is_given_to_vllm(here: list[str]) -> None:
    here.append("runai_model_streamer")
    for name in ("auto", "runai_streamer", "sharded_state"):
        load_formats.check(app(name, Device.cpu))
        assert engine_args(app(name))["load_format"] == name
    load_formats.check(app("auto", weights=False))
    assert engine_args(app("auto", weights=False))["load_format"] == "dummy"


def test_loaders_of_other_plugins_pass(here: list[str], monkeypatch) -> None:
    monkeypatch.setattr(load_formats, "_other_plugins", lambda: ["mine"])
    load_formats.check(app("my_loader"))


def test_without_vllm_here_its_packages_may_be_elsewhere(here: list[str]) -> None:
    here.clear()
    load_formats.check(app("runai_streamer", Device.cpu))


def test_the_fake_engine_loads_nothing(here: list[str]) -> None:
    found = app("fastsafetensors")
    found.engine.kind = EngineKind.fake
    load_formats.check(found)
