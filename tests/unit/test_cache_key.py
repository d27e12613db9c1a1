"""An artifact's name: the device counts where it is not the rank, since Inductor bakes its index."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.graph_cache import key
from orchestrator.vllm_plugin import cache_key


@pytest.mark.parametrize(
    ("rank", "device", "factors"),
    [
        (0, None, ["own"]),  # a replica that makes the key initialises no device
        (0, 0, ["own"]),
        (1, 1, ["own"]),
        (0, 4, ["own", "device 4"]),  # vLLM's Ray executor: all GPUs are visible, and this one was free
        (4, 0, ["own", "device 0"]),  # the first one of a second node
    ],
)
def test_a_device_that_is_not_the_rank_is_part_of_the_name(rank: int, device: Any, factors: list, monkeypatch) -> None:
    caching = pytest.importorskip("vllm.compilation.caching")
    import torch

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: device is not None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: device)
    monkeypatch.setattr(caching, "aot_compile_hash_factors", lambda vllm_config: ["own"])
    cache_key.install()
    config: Any = SimpleNamespace(
        additional_config={"orchestrator": {"kv_update": "layer_index"}},
        model_config=None,
        parallel_config=SimpleNamespace(rank=rank),
    )
    assert caching.aot_compile_hash_factors(config) == factors


def test_a_folder_without_sources_is_no_part_of_a_key(tmp_path: Path) -> None:
    """A path that has become wrong would else leave code out of the key, and nobody would see it."""
    (tmp_path / "a.py").write_text("a = 1")
    assert key.source_digest(tmp_path) != key.source_digest(Path(cache_key.__file__).parent)
    with pytest.raises(FileNotFoundError, match=r"no Python sources in .*/nowhere"):
        key.source_digest(tmp_path / "nowhere")
