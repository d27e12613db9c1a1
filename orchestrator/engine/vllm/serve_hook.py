"""Our start around vLLM's AsyncLLM, for a host that makes the engine itself: Ray Serve LLM."""

from __future__ import annotations

import logging
import time
from typing import Any

from orchestrator import compat
from orchestrator.compat import features, table
from orchestrator.engine.start import Start, launch
from orchestrator.engine.vllm.compile_key import compile_key
from orchestrator.engine.vllm.supervisor import Supervisor

logger = logging.getLogger("ray.serve")


def install(supervisor: Supervisor, start: Start) -> None:
    """From now on an AsyncLLM of this process restores its graphs first, starts under a deadline, and publishes.

    Args:
        supervisor: the engine's; entered, and vLLM imported.
        start: the replica's.
    """
    if compat.on(features.SERVE_HOOK):
        compat.patch(table.ASYNC_LLM, lambda plain: hosting(plain, supervisor, start))


def hosting(plain: Any, supervisor: Supervisor, start: Start) -> Any:
    """`plain`, an engine class that starts when it is made from a configuration, with our start around that."""

    class SharedGraphLLM(plain):  # type: ignore[misc]
        last_token = 0.0  # when any request got one, by the monotonic clock

        def __init__(self, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
            if compat.on(features.HEALTH):
                kwargs["stat_loggers"] = [*(kwargs.get("stat_loggers") or ()), self._stat_logger]
            supervisor.events.mark("plan")
            if (log := getattr(vllm_config, "logging_config", None)) is not None:  # older ones have none
                # Ray makes a GPU's configuration in another process, which has not got our environment
                log.pylogging_config_file, log.configure_logging = supervisor.logging_file, True
            make = super().__init__
            with start.launching():
                try:
                    restored = start.restore(lambda: compile_key(vllm_config))
                except BaseException:
                    supervisor.end()
                    raise
                launch(supervisor, lambda: make(vllm_config, *args, **kwargs), restored=restored)
            start.publish()
            receipt = start.receipt
            reason = f" ({receipt.reason})" if receipt.reason else ""
            logger.info("%s: graph cache %s%s", start.replica, receipt.outcome.value, reason)

        def _stat_logger(self, vllm_config: Any, engine_index: int = 0) -> Any:
            engine = self

            class Noted(compat.get(table.STAT_LOGGER)):  # type: ignore[misc]
                def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
                    pass

                def record(self, scheduler_stats: Any, iteration_stats: Any, *args: Any, **kwargs: Any) -> None:
                    if getattr(iteration_stats, "num_generation_tokens", 0):
                        engine.last_token = time.monotonic()

                def log_engine_initialized(self) -> None:
                    pass

            return Noted(vllm_config, engine_index)

        def shutdown(self, timeout: float | None = None) -> None:
            supervisor.note_segments()
            super().shutdown(timeout)
            supervisor.end()
            start.end()

    return SharedGraphLLM


def import_api() -> None:
    """Import vLLM's OpenAI-compatible API, which Ray Serve LLM calls into."""
    import vllm.entrypoints.openai.api_server  # noqa: F401


async def first_token(engine_client: Any, request_id: str) -> None:
    """Return once the engine has generated one token; raises what vLLM raises if it cannot."""
    from vllm import SamplingParams

    prompt = {"prompt_token_ids": [1]}
    async for _ in engine_client.generate(prompt, SamplingParams(max_tokens=1, temperature=0.0), request_id):
        return
