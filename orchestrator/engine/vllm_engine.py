"""vLLM behind the engine contract: AsyncLLM, its processes under a deadline, its facts out of its own log."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from orchestrator import timeline
from orchestrator.engine import preload, processes
from orchestrator.engine.base import Chunk, CompileKey, EngineSpec, Sampling
from orchestrator.errors import EngineDeadError, EngineStartError
from orchestrator.graph_cache import key

# vLLM may take ten minutes to notice a worker that failed in its start; we give it these seconds.
_GRACE_S = 3.0
_POLL_S = 0.2


class VllmEngine:
    """One tensor-parallel vLLM engine in processes of its own (EngineCore and a worker per rank)."""

    def __init__(self, spec: EngineSpec) -> None:
        self.spec = spec
        self.events = timeline.EventLog(spec.events_file)
        self._marker = f"{spec.replica}-{os.getpid()}-{time.time_ns()}"
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="vllm-start")
        self._reaper: subprocess.Popen[bytes] | None = None
        self._config: Any = None
        self._llm: Any = None

    def prepare(self) -> CompileKey:
        """Import vLLM, make its configuration, and read the compile key's factors out of it."""
        self._set_environment()
        if self.spec.preload:
            preload.start_server(cpu=self.spec.cpu)
        try:
            from vllm.engine.arg_utils import AsyncEngineArgs

            self.events.mark("import")
            if self.spec.preload:
                preload.use_in_this_process()
                preload.inspect_models_here()
            args = AsyncEngineArgs(model=self.spec.model, **self.spec.args)
            self._config = args.create_engine_config()
        except Exception as error:
            raise EngineStartError(
                f"{self.spec.replica}: vLLM refused the configuration: {_one_line(error)}",
                replica=self.spec.replica,
                phase="plan",
                cause=_one_line(error),
            ) from error
        factors = {} if self.spec.stock else compile_factors(self._config)
        self.events.mark("plan")
        return CompileKey(factors)

    async def stand_by(self) -> None:
        """Wait until the preload server has imported vLLM."""
        if self.spec.preload:
            await asyncio.to_thread(preload.wait_ready)

    async def start(self, *, restored: bool = False) -> timeline.EngineFacts:
        """Start EngineCore and workers; on failure kill them and raise the root cause."""
        if self.spec.cpu and self.spec.quick_cpu_probe:
            os.environ[preload.CPU_PROBE] = "known" if restored else "flags"
        self._reaper = processes.start_reaper(self._marker)
        building = asyncio.get_running_loop().run_in_executor(self._thread, self._build)
        deadline = time.monotonic() + self.spec.start_timeout_s
        failed_at: float | None = None
        while not building.done():
            await asyncio.wait([building], timeout=_POLL_S)
            now = time.monotonic()
            if failed_at is None and timeline.root_cause(self.events.read()):
                failed_at = now
            if now > deadline or (failed_at is not None and now > failed_at + _GRACE_S):
                break
        if building.done() and building.exception() is None:
            self._llm = building.result()
            self.events.mark("handshake")
            return timeline.facts(self.events.read())
        raise await self._failure(building, timed_out=time.monotonic() > deadline)

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
        segments = await asyncio.to_thread(processes.shared_segments, self._marker)
        if llm is not None:
            shutting = asyncio.get_running_loop().run_in_executor(None, llm.shutdown)
            await asyncio.wait([shutting], timeout=5.0)
        await asyncio.to_thread(processes.kill_marked, self._marker)
        await asyncio.to_thread(processes.remove_segments, segments)
        if self.spec.preload:
            preload.forget_server()
        if self._reaper is not None:
            self._reaper.terminate()
            self._reaper.wait()
            self._reaper = None
        self._thread.shutdown(wait=False)

    def _set_environment(self) -> None:
        scratch = Path(self.spec.scratch)
        logging_file = scratch / "logging.json"
        logging_file.write_text(json.dumps(timeline.vllm_logging_config(self.spec.events_file)))
        os.environ.update(self.spec.env)
        os.environ.update(
            {
                processes.MARKER: self._marker,
                "VLLM_CACHE_ROOT": self.spec.cache_root,
                "VLLM_LOGGING_CONFIG_PATH": str(logging_file),
            }
        )

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

    async def _failure(self, building: asyncio.Future[Any], *, timed_out: bool) -> EngineStartError:
        cause = timeline.root_cause(self.events.read())
        if not cause and building.done() and (error := building.exception()) is not None:
            cause = _one_line(error)
        if not cause and timed_out:
            cause = f"no answer within engine.start_timeout_s={self.spec.start_timeout_s:g}"
        reached = timeline.phases(self.events.read(), 0.0)
        phase = f"after {reached[-1].name!r}" if reached else "start"
        await self.stop()
        await asyncio.wait([building], timeout=_GRACE_S)  # vLLM raises once its processes are gone; nobody else asks
        return EngineStartError(
            f"{self.spec.replica}: the engine did not start ({phase}): {cause}",
            replica=self.spec.replica,
            phase=phase,
            cause=cause,
        )

    def _dead(self) -> EngineDeadError:
        cause = timeline.root_cause(self.events.read())
        return EngineDeadError(f"{self.spec.replica}: the engine is dead. {cause}".strip(), replica=self.spec.replica)


def compile_factors(vllm_config: Any) -> dict[str, str]:
    """vLLM's own cache-key factors (`aot_compile_hash_factors`) and what they leave out.

    Left out by vLLM and added here: the model class, this plugin's code, Python, the CPU's instruction set or the GPU,
    and the shape of the parallel group.
    """
    import sys

    import torch
    import vllm
    from vllm.compilation.caching import aot_compile_hash_factors
    from vllm.platforms import current_platform

    names = ("vllm env", "vllm config", "inductor")
    own = aot_compile_hash_factors(vllm_config)
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


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]
