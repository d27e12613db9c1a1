"""When an engine's processes are forks, and what a fork takes over from the environment that its parent has now."""

from __future__ import annotations

import logging
import os

import pytest

from orchestrator.engine.vllm import fork_context


@pytest.mark.parametrize(
    ("variable", "value", "forks"),
    [
        ("VLLM_USE_BREAKABLE_CUDAGRAPH", "1", False),
        ("VLLM_USE_BREAKABLE_CUDAGRAPH", "0", True),
        ("VLLM_BATCH_INVARIANT", "1", False),
        ("VLLM_USE_LAYERNAME", "0", False),
        ("VLLM_USE_LAYERNAME", "1", True),
    ],
)
def test_what_was_decided_at_import_is_not_forked_for_another_decision(
    variable: str, value: str, forks: bool, monkeypatch, caplog
) -> None:
    """vLLM sets the first one while it makes the configuration: the zygote imported attention before."""
    for name in fork_context._AT_IMPORT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(fork_context, "_imported_with", fork_context._decided())
    monkeypatch.setitem(os.environ, variable, value)
    fork_context._say_once.cache_clear()
    monkeypatch.setattr(logging.getLogger("vllm"), "propagate", True)
    with caplog.at_level("WARNING", "vllm.orchestrator"):
        context = fork_context.context()
    assert isinstance(context, fork_context.PreloadedContext) == forks
    assert context.get_start_method() == ("forkserver" if forks else "spawn")
    assert (f"no forks: vLLM was imported without {variable}={value}" in caplog.text) != forks
