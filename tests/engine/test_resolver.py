"""The run time of the layer index on vLLM's own forward context: every way in which a forward can go."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.errors import LayerNameMismatch

vllm = pytest.importorskip("vllm")

A, B = "model.layers.0.self_attn.attn", "model.layers.1.self_attn.attn"


@pytest.fixture(scope="module")
def runtime() -> Any:
    from orchestrator.vllm_plugin import kv_runtime

    return kv_runtime


@pytest.fixture
def updated(runtime: Any, monkeypatch) -> list[str]:
    """The layers that vLLM's update op was called for."""
    import torch

    found: list[str] = []

    def update(key: Any, value: Any, name: str) -> Any:
        found.append(name)
        return torch.empty(0)

    monkeypatch.setattr(runtime.attention, "unified_kv_cache_update", update)
    return found


def context() -> Any:
    """A forward context as vLLM makes one, here for a profiling run: no attention metadata."""
    from vllm.forward_context import ForwardContext

    return ForwardContext(no_compile_layers={}, attn_metadata=None, slot_mapping={})


@pytest.fixture
def forward() -> Iterator[Any]:
    from vllm.forward_context import override_forward_context

    with override_forward_context(context()):
        yield


def piece(runtime: Any, *names: str, upto: int | None = None) -> None:
    """What the stitching code and a compiled piece do together."""
    runtime.enter_piece(names)
    for _ in names[:upto]:
        runtime.kv_cache_update(None, None)


def test_names_come_by_index_and_the_guard_agrees(runtime, updated, forward) -> None:
    piece(runtime, A)
    runtime.check_layer(0, A)
    piece(runtime, B, A)  # an order that no constructor would give
    runtime.check_layer(0, B)
    runtime.check_layer(1, SimpleNamespace(value=A))  # vLLM's LayerName
    assert updated == [A, B, A]


def test_an_exception_in_a_forward_and_the_same_context_again(runtime, updated, forward) -> None:
    piece(runtime, A, B, upto=1)  # the forward ends here
    piece(runtime, A, B)
    runtime.check_layer(1, B)
    assert updated == [A, A, B]


def test_two_micro_batches_take_turns(runtime, updated) -> None:
    from vllm.forward_context import override_forward_context

    one, two = context(), context()
    with override_forward_context(one):
        runtime.enter_piece((A, B))
        runtime.kv_cache_update(None, None)
    with override_forward_context(two):
        runtime.enter_piece((B,))
        runtime.kv_cache_update(None, None)
        runtime.check_layer(0, B)
    with override_forward_context(one):
        runtime.kv_cache_update(None, None)
        runtime.check_layer(0, A)
        runtime.check_layer(1, B)
    assert updated == [A, B, B]


def test_a_drafter_in_the_same_context_has_its_own_names(runtime, updated, forward) -> None:
    piece(runtime, A)
    runtime.check_layer(0, A)
    piece(runtime, "draft.layers.0.attn")
    runtime.check_layer(0, "draft.layers.0.attn")
    assert updated == [A, "draft.layers.0.attn"]


def test_a_replayed_cuda_graph_runs_no_python_and_is_not_blamed(runtime, updated, forward) -> None:
    runtime.enter_piece((A,))
    runtime.check_layer(0, A)
    assert updated == []


@pytest.mark.parametrize("name", ["from_forward_context", "", "orchestrator::kv_cache_update"])
def test_no_name_is_special(name: str, runtime, updated, forward) -> None:
    piece(runtime, name)
    runtime.check_layer(0, name)
    assert updated == [name]


def test_a_wrong_order_half_a_piece_and_one_update_too_many_raise(runtime, updated, forward) -> None:
    piece(runtime, A)
    with pytest.raises(LayerNameMismatch) as caught:
        runtime.check_layer(0, B)
    assert (caught.value.updated, caught.value.attended) == (A, B)
    piece(runtime, A, B, upto=1)
    with pytest.raises(LayerNameMismatch, match="1 of 2 updates ran"):
        runtime.check_layer(0, A)
    piece(runtime, A)
    with pytest.raises(LayerNameMismatch, match="beyond the 1"):
        runtime.kv_cache_update(None, None)


def test_outside_a_forward_nothing_is_announced(runtime) -> None:
    runtime.enter_piece((A,))
    runtime.check_layer(0, B)


def whole(compilation: SimpleNamespace) -> SimpleNamespace:
    """A configuration with nothing else that would keep the update out of compiled pieces."""
    return SimpleNamespace(
        compilation_config=compilation,
        parallel_config=SimpleNamespace(prefill_context_parallel_size=1),
        attention_config=SimpleNamespace(hisparse_config=None),
    )


@pytest.mark.parametrize("fusion", ["fuse_rope_kvcache", "fuse_qk_norm_rope_kvcache", "fuse_rope_kvcache_cat_mla"])
def test_fusions_that_resolve_names_fall_back(fusion: str) -> None:
    from orchestrator.vllm_plugin import compiler_hooks, kv_pass

    passes = SimpleNamespace(**{fusion: True})
    compilation = SimpleNamespace(use_inductor_graph_partition=False, pass_config=passes)
    token = compiler_hooks._compiling.set(whole(compilation))
    try:
        with pytest.raises(kv_pass.CannotRewrite, match=f"{fusion} resolves layer names on its own"):
            compiler_hooks._require_supported("layer_index")
        passes.__dict__[fusion] = False
        compilation.use_inductor_graph_partition = True
        with pytest.raises(kv_pass.CannotRewrite, match="no stitching code"):
            compiler_hooks._require_supported("layer_index")
    finally:
        compiler_hooks._compiling.reset(token)


def test_layer_name_needs_vllms_layer_name(monkeypatch) -> None:
    """VLLM_USE_LAYERNAME=0 bakes names; `layer_name` then falls back, and `layer_index` does not care."""
    from vllm.utils import torch_utils

    from orchestrator.vllm_plugin import compiler_hooks, kv_pass

    monkeypatch.setattr(torch_utils, "_USE_LAYERNAME", False)
    compilation = SimpleNamespace(use_inductor_graph_partition=False, pass_config=SimpleNamespace())
    token = compiler_hooks._compiling.set(whole(compilation))
    try:
        compiler_hooks._require_supported("layer_index")
        with pytest.raises(kv_pass.CannotRewrite, match="VLLM_USE_LAYERNAME=1"):
            compiler_hooks._require_supported("layer_name")
    finally:
        compiler_hooks._compiling.reset(token)


def test_keys_leave_out_where_a_replica_runs(make_app, state: str, tmp_path, monkeypatch) -> None:
    """Another home, host, port, bundle, core list and model folder: the same key. Other code: another key, by name."""
    import shutil

    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.plugins import load_general_plugins

    from orchestrator import models
    from orchestrator.engine.vllm import fork_context
    from orchestrator.engine.vllm.compile_key import compile_factors
    from orchestrator.graph_cache import key

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    load_general_plugins()
    fork_context.inspect_models_here()
    here = models.resolve(make_app("model=tiny_llama").model, state)
    there = shutil.copytree(here, tmp_path / "another home")

    def factors(model: Any, **more: Any) -> dict[str, str]:
        plugin = {"orchestrator": {"kv_update": "layer_index"}}
        args = AsyncEngineArgs(model=str(model), max_model_len=256, additional_config=plugin, **more)
        return compile_factors(args.create_engine_config())

    def apart(found: dict[str, str]) -> list[str]:
        """Of what set two keys apart, the names without vLLM's groups; Inductor's ranges go with the tokens."""
        assert (key.digest(found) == key.digest(first)) == (found == first)
        return [name.rpartition(".")[2].rpartition(" ")[2] for name in key.differing(first, found)]

    first = factors(here)
    for name, value in {
        "HOME": str(tmp_path), "VLLM_HOST_IP": "192.0.2.9", "VLLM_PORT": "12345", "VLLM_RAY_BUNDLE_INDICES": "1,2",
        "VLLM_CPU_OMP_THREADS_BIND": "0", "VLLM_CACHE_ROOT": str(tmp_path), "VLLM_LOOPBACK_IP": "127.0.0.1",
        "VLLM_API_KEY": "secret",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    found = factors(there)
    assert key.differing(first, found) == []
    assert "secret" not in str(found)
    assert apart(factors(here, max_num_batched_tokens=777)) == ["compile_ranges_endpoints", "max_num_batched_tokens"]
    assert apart(factors(here, dtype="float16")) == ["dtype"]
    assert apart(factors(here, block_size=64)) == ["block_size"]
    monkeypatch.setenv("VLLM_MLA_DISABLE", "1")
    assert key.differing(first, factors(here)) == ["vllm env VLLM_MLA_DISABLE"]
    monkeypatch.delenv("VLLM_MLA_DISABLE")
    (there / "tokenizer_config.json").write_text("{}")
    (there / "chat_template.jinja").write_text("{{ messages }}")
    assert factors(there) == first
    (there / "quantize_config.json").write_text('{"bits": 4}')
    assert key.differing(first, factors(there)) == ["model quantize_config.json"]
