"""vLLM behind the engine contract: AsyncLLM, its processes under a deadline, its facts out of its own log."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from orchestrator import compat, timeline
from orchestrator.engine.contract import Chunk, CompileKey, EngineSpec, Sampling
from orchestrator.engine.start import failure, launch
from orchestrator.engine.vllm.compile_key import compile_key
from orchestrator.engine.vllm.supervisor import Supervisor
from orchestrator.errors import EngineDeadError, EngineStartError, one_line

_POLL_S = 0.2


class VllmEngine:
    """One tensor-parallel vLLM engine in processes of its own (EngineCore and a worker per rank)."""

    def __init__(self, spec: EngineSpec) -> None:
        self.spec = spec
        self._supervisor = Supervisor(spec)
        self.events = self._supervisor.events
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="vllm-start")
        self._config: Any = None
        self._llm: Any = None

    def prepare(self) -> CompileKey:
        """Import vLLM, make its configuration, and read the compile key's factors out of it."""
        self._supervisor.enter()
        try:
            from vllm.engine.arg_utils import AsyncEngineArgs

            self._supervisor.imported()
            args = AsyncEngineArgs(model=self.spec.model, **self.spec.args)
            self._config = args.create_engine_config()
        except Exception as error:
            raise EngineStartError(
                f"{self.spec.replica}: vLLM refused the configuration: {one_line(error)}",
                replica=self.spec.replica,
                phase="plan",
                cause=one_line(error),
            ) from error
        found = CompileKey()
        if not self.spec.stock:
            with suppress(compat.Gone):
                found = compile_key(self._config)
        self.events.mark("plan")
        return found

    async def start(self, *, restored: bool = False) -> timeline.EngineFacts:
        """Start EngineCore and workers; on failure kill them and raise the root cause."""
        loop = asyncio.get_running_loop()
        building = loop.run_in_executor(self._thread, lambda: launch(self._supervisor, self._build, restored=restored))
        while not building.done():
            if self._supervisor.unnoticed():  # its thread stays where it is
                raise failure(self._supervisor, None)
            await asyncio.wait([building], timeout=_POLL_S)
        self._llm = building.result()
        return timeline.facts(self.events.read())

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
        await asyncio.to_thread(self._supervisor.note_segments)
        if llm is not None:
            shutting = asyncio.get_running_loop().run_in_executor(None, llm.shutdown)
            await asyncio.wait([shutting], timeout=5.0)
        await asyncio.to_thread(self._supervisor.end)
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

    def _dead(self) -> EngineDeadError:
        cause = self._supervisor.cause()
        return EngineDeadError(f"{self.spec.replica}: the engine is dead. {cause}".strip(), replica=self.spec.replica)
