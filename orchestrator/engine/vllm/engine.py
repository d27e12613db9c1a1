"""vLLM behind the engine contract: AsyncLLM, its processes under a deadline, its facts out of its own log."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from orchestrator import compat, timeline, vllm_plugin
from orchestrator.compat import features, table
from orchestrator.engine.contract import Chunk, CompileKey, EngineSpec, Sampling
from orchestrator.engine.start import failure, launch
from orchestrator.engine.vllm.supervisor import Supervisor
from orchestrator.errors import EngineDeadError, EngineStartError, one_line
from orchestrator.graph_cache import key
from orchestrator.vllm_plugin.settings import logger

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


def compile_key(vllm_config: Any) -> CompileKey:
    """The compile key of a configuration as vLLM has made it, or why there is nothing to share."""
    if reason := why_unshared(vllm_config):
        logger.info("Compiled graphs are not shared: %s.", reason)
        return CompileKey(unshared=reason)
    return CompileKey(compile_factors(vllm_config))


def why_unshared(vllm_config: Any) -> str:
    """Why an engine saves no graphs that another could load; "" where it does.

    Such engines must neither lead nor wait: nothing would ever be published. vLLM settles the mode while it makes the
    configuration; models with breakable CUDA graphs end up with NONE.
    """
    from vllm import envs
    from vllm.compilation.compiler_interface import is_compile_cache_enabled
    from vllm.config import CompilationMode
    from vllm.platforms import current_platform

    compilation = vllm_config.compilation_config
    if compilation.mode != CompilationMode.VLLM_COMPILE:
        return f"vLLM's compilation mode is {CompilationMode(compilation.mode or 0).name}"
    if compilation.backend == "eager":
        return 'the compilation backend "eager" saves nothing'
    if not is_compile_cache_enabled(compilation.inductor_compile_config):
        return "the compile cache is disabled"
    if not envs.VLLM_USE_AOT_COMPILE:
        return "VLLM_USE_AOT_COMPILE is off"
    if envs.VLLM_BATCH_INVARIANT and not current_platform.is_cpu():
        return "VLLM_BATCH_INVARIANT switches ahead-of-time compile off in the workers"
    return ""


def compile_factors(vllm_config: Any) -> dict[str, str]:
    """vLLM's own cache-key factors (`aot_compile_hash_factors`) and what they leave out.

    Left out by vLLM and added here: the model class, this plugin's code, FlashInfer, Python, the CPU's instruction set
    or the GPU, and the shape of the parallel group.

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
    capability = current_platform.get_device_capability()
    return factors | {
        "architecture": ",".join(model.architectures),
        "vllm": vllm.__version__,
        "torch": torch.__version__,
        "python": ".".join(map(str, sys.version_info[:3])),
        "flashinfer": _flashinfer(),
        "plugin": key.source_digest(Path(vllm_plugin.__file__).parent),
        "device": f"{current_platform.device_type} {current_platform.get_device_name()} {capability}",
        "cpu": key.cpu_instruction_set(model=current_platform.is_cpu()),
        "parallel": f"tp={parallel.tensor_parallel_size} pp={parallel.pipeline_parallel_size} "
        f"dp={parallel.data_parallel_size}",
    }


def _flashinfer() -> str:
    """The versions of FlashInfer and its kernels, and whether vLLM would use them: custom ops of its lie in graphs."""
    from importlib import metadata

    from vllm.utils.flashinfer import has_flashinfer

    names = ("flashinfer-python", "flashinfer-cubin", "flashinfer-jit-cache")
    versions = []
    for name in names:
        with suppress(metadata.PackageNotFoundError):
            versions.append(f"{name} {metadata.version(name)}")
    return ", ".join([*versions, "used" if has_flashinfer() else "not used"])


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
