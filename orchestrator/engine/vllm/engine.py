"""vLLM behind the engine contract: AsyncLLM, its processes under a deadline, its facts out of its own log."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from orchestrator import compat, timeline
from orchestrator.compat import features, table
from orchestrator.engine.contract import Chunk, CompileKey, EngineSpec, Sampling
from orchestrator.engine.vllm.supervisor import GRACE_S, Surroundings
from orchestrator.errors import EngineDeadError, EngineStartError
from orchestrator.graph_cache import key

_POLL_S = 0.2


class VllmEngine:
    """One tensor-parallel vLLM engine in processes of its own (EngineCore and a worker per rank)."""

    def __init__(self, spec: EngineSpec) -> None:
        self.spec = spec
        self._around = Surroundings(spec)
        self.events = self._around.events
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="vllm-start")
        self._config: Any = None
        self._llm: Any = None

    def prepare(self) -> CompileKey:
        """Import vLLM, make its configuration, and read the compile key's factors out of it."""
        self._around.enter()
        try:
            from vllm.engine.arg_utils import AsyncEngineArgs

            self._around.imported()
            args = AsyncEngineArgs(model=self.spec.model, **self.spec.args)
            self._config = args.create_engine_config()
        except Exception as error:
            raise EngineStartError(
                f"{self.spec.replica}: vLLM refused the configuration: {_one_line(error)}",
                replica=self.spec.replica,
                phase="plan",
                cause=_one_line(error),
            ) from error
        factors: dict[str, str] = {}
        if not self.spec.stock:
            with suppress(compat.Gone):
                factors = compile_factors(self._config)
        self.events.mark("plan")
        return CompileKey(factors)

    async def start(self, *, restored: bool = False) -> timeline.EngineFacts:
        """Start EngineCore and workers; on failure kill them and raise the root cause."""
        self._around.begin(restored=restored)
        building = asyncio.get_running_loop().run_in_executor(self._thread, self._build)
        while not building.done() and not self._around.overdue():
            await asyncio.wait([building], timeout=_POLL_S)
        if building.done() and building.exception() is None:
            self._llm = building.result()
            self._around.started()
            return timeline.facts(self.events.read())
        raise await self._failure(building)

    async def generate(self, prompt: str, sampling: Sampling, request_id: str) -> AsyncIterator[Chunk]:
        """Stream an answer; chat models get their template applied."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind
        from vllm.v1.engine.exceptions import EngineDeadError as VllmDead

        params = SamplingParams(
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            ignore_eos=sampling.ignore_eos,
            output_kind=RequestOutputKind.DELTA,
        )
        try:
            async for output in self._llm.generate(await self._encoded(prompt), params, request_id):
                part = output.outputs[0]
                yield Chunk(tuple(part.token_ids), part.text, part.finish_reason)
        except VllmDead as error:
            raise self._dead() from error

    async def check_health(self) -> None:
        """Ask vLLM whether its engine runs."""
        from vllm.v1.engine.exceptions import EngineDeadError as VllmDead

        try:
            await self._llm.check_health()
        except (VllmDead, AttributeError) as error:
            raise self._dead() from error

    async def stop(self) -> None:
        """Shut vLLM down; whatever is left after two seconds is killed."""
        llm, self._llm = self._llm, None
        segments = await asyncio.to_thread(self._around.segments)
        if llm is not None:
            shutting = asyncio.get_running_loop().run_in_executor(None, llm.shutdown)
            await asyncio.wait([shutting], timeout=5.0)
        await asyncio.to_thread(self._around.end, segments)
        self._thread.shutdown(wait=False)

    def _build(self) -> Any:
        from vllm.v1.engine.async_llm import AsyncLLM

        return AsyncLLM.from_vllm_config(self._config, disable_log_stats=True)

    async def _encoded(self, prompt: str) -> Any:
        if not self.spec.chat:
            return prompt
        tokenizer = self._llm.get_tokenizer()
        messages = [{"role": "user", "content": prompt}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return {"prompt_token_ids": tokenizer.encode(text, add_special_tokens=False)}

    async def _failure(self, building: asyncio.Future[Any]) -> EngineStartError:
        cause, phase = self._around.cause(), self._around.phase()
        if not cause and building.done() and (error := building.exception()) is not None:
            cause = _one_line(error)
        await self.stop()
        await asyncio.wait([building], timeout=GRACE_S)  # vLLM raises once its processes are gone; nobody else asks
        return EngineStartError(
            f"{self.spec.replica}: the engine did not start ({phase}): {cause}",
            replica=self.spec.replica,
            phase=phase,
            cause=cause,
        )

    def _dead(self) -> EngineDeadError:
        cause = self._around.cause()
        return EngineDeadError(f"{self.spec.replica}: the engine is dead. {cause}".strip(), replica=self.spec.replica)


def compile_factors(vllm_config: Any) -> dict[str, str]:
    """vLLM's own cache-key factors (`aot_compile_hash_factors`) and what they leave out.

    Left out by vLLM and added here: the model class, this plugin's code, Python, the CPU's instruction set or the GPU,
    and the shape of the parallel group.

    Raises:
        compat.Gone: vLLM has no such function any more.
    """
    import sys

    import torch
    import vllm
    from vllm.platforms import current_platform

    names = ("vllm env", "vllm config", "inductor")
    with _no_device_asked():
        own = compat.get(table.AOT_FACTORS)(vllm_config)
    factors = dict(zip(names, own, strict=False))
    if len(own) > len(names):
        factors["inductor"] = repr(own[len(names) - 1 :])
    parallel, model = vllm_config.parallel_config, vllm_config.model_config
    plugin = Path(__file__).parents[1] / "vllm_plugin"
    capability = current_platform.get_device_capability()
    return factors | {
        "architecture": ",".join(model.architectures),
        "vllm": vllm.__version__,
        "torch": torch.__version__,
        "python": ".".join(map(str, sys.version_info[:3])),
        "plugin": key.source_digest(plugin),
        "device": f"{current_platform.device_type} {current_platform.get_device_name()} {capability}",
        "cpu": key.cpu_instruction_set(),
        "parallel": f"tp={parallel.tensor_parallel_size} pp={parallel.pipeline_parallel_size} "
        f"dp={parallel.data_parallel_size}",
    }


@contextmanager
def _no_device_asked() -> Iterator[None]:
    """Inductor's factors hold the GPU's name, and asking for it initialises CUDA here; the key has it from NVML."""
    import torch

    if torch.version.cuda is None or not compat.on(features.NO_DEVICE):
        yield
        return
    named = {"triton": compat.get(table.TRITON_KEY)(), "cuda": torch.version.cuda}
    with compat.replaced(table.SYSTEM, lambda _: lambda: named):
        yield


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]
