"""Real vLLM behind the engine contract, and what happens when it dies or does not start."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from orchestrator import models
from orchestrator.config import EngineKind
from orchestrator.engine import EngineSpec, create
from orchestrator.engine.vllm import reaper
from orchestrator.engine.vllm.engine import VllmEngine
from orchestrator.errors import EngineDeadError, EngineStartError
from tests import contract
from tests.waiting import HANG_S

ARGS = {"max_model_len": 512, "max_num_seqs": 4, "max_num_batched_tokens": 512, "dtype": "float32"}


@pytest.fixture
def engine(make_app, state: str, tmp_path: Path):
    """An engine of the tiny Llama; the process environment is put back afterwards."""
    before = dict(os.environ)
    model = models.resolve(make_app("model=tiny_llama").model, state)

    def make(**args: object) -> VllmEngine:
        os.environ["HF_HUB_OFFLINE"] = "1"
        plugin = {"additional_config": {"orchestrator": {"kv_update": "layer_index"}}}
        made = create(
            EngineKind.vllm,
            EngineSpec(
                replica="replica-0",
                model=model,
                args={**ARGS, "kv_cache_memory_bytes": 64 << 20, **plugin, **args},
                env={},
                scratch=str(tmp_path),
                cache_root=str(tmp_path / "cache"),
                start_timeout_s=HANG_S,
                preload=True,
            ),
        )
        assert isinstance(made, VllmEngine)
        return made

    yield make
    os.environ.clear()
    os.environ.update(before)


def test_a_failing_start_gives_the_root_cause_in_seconds(engine) -> None:
    broken = engine(kv_cache_memory_bytes=1 << 50)
    broken.prepare()
    with pytest.raises(EngineStartError) as caught:
        asyncio.run(broken.start())  # not at its deadline: the cause would be another
    assert "GiB) on kv cache allocation is less than requested memory" in " ".join(caught.value.cause.split())
    assert reaper.marked(broken._supervisor._marker) == []


def test_the_contract_and_a_killed_engine(engine) -> None:
    async def run() -> None:
        real = engine()
        factors = real.prepare().factors
        assert {"vllm env", "vllm config", "inductor", "cpu", "parallel", "model config.json"} <= set(factors)
        facts = await real.start()
        assert (facts.loaded, facts.compiled) == (0, 1)
        await contract.check_serving(real)
        await kill_core(real)
        await contract.check_stopping(real)
        assert reaper.marked(real._supervisor._marker) == []

    asyncio.run(run())


async def kill_core(real: VllmEngine) -> None:
    """SIGKILL the process that schedules: running requests end with the typed error, soon."""
    (pid,) = [event.pid for event in real.events.read() if event.text.startswith("Initializing a V")]
    request = asyncio.create_task(contract.collect(real, contract.PROMPTS[0], 400, "cut"))
    await asyncio.sleep(0.2)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(EngineDeadError):
        await asyncio.wait_for(request, HANG_S)
    with pytest.raises(EngineDeadError):
        await real.check_health()
