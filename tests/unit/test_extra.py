"""`engine.extra`: what of vLLM's arguments merges with ours, and what is refused."""

from __future__ import annotations

import pytest

from orchestrator.config import extra, vllm_arguments
from orchestrator.engine.arguments import additional_config, engine_args
from orchestrator.errors import ConfigError
from orchestrator.serve.app import cells, llm_config

OURS = {"kv_update": "layer_index", "trace_once": True}


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model=/m", "Set model.id."),
        ("tensor_parallel_size=2", "Set engine.tensor_parallel_size=2."),
        ("dtype=float16", "Set model.dtype=float16."),
        ("max_model_len=null", "Set model.max_model_len=null."),
        ("enforce_eager=true", "Set engine.enforce_eager=true."),
        ("seed=1", "Set engine.seed=1."),
        ("kv_cache_memory_bytes=1000", "Set engine.kv_cache_gib."),
        ("served_model_name=m", "Set model.name."),
        ("distributed_executor_backend=ray", "follows from placement"),
        ("pipeline_parallel_size=2", "tensor-parallel ranks alone"),
        ("data_parallel_size=2", "tensor-parallel ranks alone"),
        ("decode_context_parallel_size=2", "tensor-parallel ranks alone"),
        ("prefill_context_parallel_size=2", "tensor-parallel ranks alone"),
        ("additional_config={orchestrator:{kv_update:split}}", "Set cold_start.kv_update"),
        ("additional_config=7", "is no mapping"),
        ("compilation_config='[1]'", "is no mapping"),
        ("compilation_config={cache_dir:/tmp}", "Set graph_cache.store"),
        ("enable_lorra=true", "Is it enable_lora?"),
        ("tool_call_parser=hermes", "Set +serve.frontend.tool_call_parser=hermes."),
    ],
)
def test_what_we_set_or_cannot_place_is_refused_in_one_line(make_app, override: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_app(f"+engine.extra.{override}")
    assert said in str(caught.value)
    assert caught.value.where == f"engine.extra.{override.partition('=')[0]}"
    assert caught.value.where in str(caught.value) or "no argument" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("+serve.frontend.tool_cal_parser=hermes", "Is it tool_call_parser?"),
        ("+serve.frontend.api_key=x", "vLLM has no argument 'api_key' for serve.frontend."),
        ("+serve.frontend.lora_modules=[]", "has no adapters"),
        ("+serve.models={tiny_llama:{frontend:{chat_tmplate:x}}}", "Is it chat_template?"),
    ],
)
def test_what_a_front_does_not_take_is_refused_in_one_line(make_app, override: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_app(override)
    assert said in str(caught.value)
    assert ".frontend." in caught.value.where


def test_each_model_has_a_front_of_its_own(make_app) -> None:
    app = make_app(
        "+serve.frontend.enable_auto_tool_choice=true",
        "+serve.models={tiny_llama:{},tiny_qwen3:{frontend:{tool_call_parser:hermes}}}",
    )
    first, second = (llm_config(cell, "/m").engine_kwargs for cell in cells(app))
    assert first["enable_auto_tool_choice"] is True
    assert (second["tool_call_parser"], "enable_auto_tool_choice" in second) == ("hermes", False)


def test_every_argument_of_ours_is_refused(make_app) -> None:
    """A setting that is added later cannot be forgotten."""
    app = make_app("model=shape_llama_3_1_8b")
    ours = engine_args(app, backend="mp")
    for name in set(ours) - {"additional_config"}:
        app.engine.extra = {name: ours[name]}
        with pytest.raises(ConfigError, match=name):
            extra.check(app)


def test_what_is_not_ours_is_taken_as_it_is(make_app) -> None:
    app = make_app("+engine.extra.attention_backend=CPU_MLA", "+engine.extra.pipeline_parallel_size=1")
    args = engine_args(app)
    assert (args["attention_backend"], args["pipeline_parallel_size"]) == ("CPU_MLA", 1)
    assert args["additional_config"] == {"orchestrator": OURS}


@pytest.mark.parametrize("given", ["{theirs:{a:1}}", '\'{"theirs": {"a": 1}}\''])
def test_additional_config_merges_with_ours(make_app, given: str) -> None:
    words = [f"+engine.extra.additional_config={given}"]
    assert engine_args(make_app(*words))["additional_config"] == {"theirs": {"a": 1}, "orchestrator": OURS}
    assert engine_args(make_app(*words, "fast_cold_start=false"))["additional_config"] == {"theirs": {"a": 1}}


def test_compilation_config_may_be_json(make_app) -> None:
    app = make_app("+engine.extra.compilation_config='{\"mode\": 3}'")
    assert engine_args(app)["compilation_config"] == {"mode": 3}


def test_a_callers_own_additional_config_stays(make_app) -> None:
    start = make_app().cold_start
    assert additional_config(start, {"theirs": 1}) == {"theirs": 1, "orchestrator": OURS}
    assert additional_config(start) == {"orchestrator": OURS}


def test_an_engine_that_is_not_vllm_has_names_of_its_own(make_app) -> None:
    assert engine_args(make_app("engine=fake", "+engine.extra.fake_mib=1"))["fake_mib"] == 1


def test_without_vllm_its_names_are_not_checked(make_app, monkeypatch: pytest.MonkeyPatch) -> None:
    vllm_arguments.engine.cache_clear()
    monkeypatch.setattr(vllm_arguments.importlib.util, "find_spec", lambda name: None)
    assert engine_args(make_app("+engine.extra.enable_lorra=true"))["enable_lorra"] is True
    vllm_arguments.engine.cache_clear()
