"""The fake keeps the contract, so that what is tested with it holds for vLLM."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from orchestrator.config import EngineKind
from orchestrator.engine import EngineSpec, create
from orchestrator.errors import EngineStartError
from tests import contract
from tests.waiting import HANG_S


def spec(folder: Path, timeout: float = HANG_S, **args: object) -> EngineSpec:
    return EngineSpec("replica-0", "m", args, {}, str(folder), str(folder / "cache"), start_timeout_s=timeout)


def test_the_contract(tmp_path: Path) -> None:
    async def run() -> None:
        engine = create(EngineKind.fake, spec(tmp_path))
        assert engine.prepare().factors
        facts = await engine.start()
        assert (facts.loaded, facts.compiled, len(facts.saved)) == (0, 1, 1)
        await contract.check_serving(engine)
        await contract.check_stopping(engine)

    asyncio.run(run())


def test_a_second_start_loads_and_another_code_compiles_again(tmp_path: Path) -> None:
    async def run(folder: Path, code: str) -> tuple[int, int, list[str]]:
        folder.mkdir()
        base = spec(folder, fake_code=code)
        engine = create(EngineKind.fake, EngineSpec(**{**vars(base), "cache_root": str(tmp_path / "shared")}))
        engine.prepare()
        facts = await engine.start()
        return facts.loaded, facts.compiled, facts.again

    assert asyncio.run(run(tmp_path / "a", "1"))[:2] == (0, 1)
    assert asyncio.run(run(tmp_path / "b", "1"))[:2] == (1, 0)
    loaded, compiled, again = asyncio.run(run(tmp_path / "c", "2"))
    assert (loaded, compiled) == (0, 1)
    assert again


@pytest.mark.parametrize(
    ("args", "cause"),
    [
        ({"fake_fail": "start"}, "RuntimeError: out of fake memory"),
        ({"fake_hang": 1, "timeout": 1.0}, "no answer within engine.start_timeout_s=1"),
    ],
)
def test_a_failing_and_a_hanging_start_raise_in_time(tmp_path: Path, args: dict[str, object], cause: str) -> None:
    engine = create(EngineKind.fake, spec(tmp_path, **args))
    engine.prepare()
    with pytest.raises(EngineStartError) as caught:
        asyncio.run(engine.start())
    assert caught.value.cause == cause
    assert caught.value.replica == "replica-0"
