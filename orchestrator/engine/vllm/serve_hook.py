"""Our start around vLLM's AsyncLLM, for a host that makes the engine itself (Ray Serve LLM)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from orchestrator import compat, timeline
from orchestrator.compat import features, table
from orchestrator.engine.vllm.engine import compile_factors
from orchestrator.engine.vllm.supervisor import Surroundings
from orchestrator.errors import EngineStartError

_POLL_S = 0.2


class GraphCache(Protocol):
    """What a start needs of the graph cache."""

    def restore(self, factors: Callable[[], Mapping[str, str]]) -> bool:
        """Install the graphs for a compile key; are they there now? Does not raise, even where `factors` does."""

    def settle(self, facts: timeline.EngineFacts) -> None:
        """The engine is up: judge, and publish."""

    def give_up(self) -> None:
        """The engine did not come up."""


def install(around: Surroundings, cache: GraphCache) -> None:
    """From now on an AsyncLLM of this process restores its graphs first, starts under a deadline, and publishes.

    Args:
        around: the engine's; entered, and vLLM imported.
        cache: its graph cache.
    """
    if compat.on(features.SERVE_HOOK):
        compat.patch(table.ASYNC_LLM, lambda plain: _sharing(plain, around, cache))


def _sharing(plain: Any, around: Surroundings, cache: GraphCache) -> Any:
    class SharedGraphLLM(plain):  # type: ignore[misc]
        def __init__(self, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
            around.events.mark("plan")
            around.begin(restored=cache.restore(lambda: compile_factors(vllm_config)), remove=around.spec.scratch)
            try:
                with _watched(around):
                    super().__init__(vllm_config, *args, **kwargs)
            except BaseException as error:
                cache.give_up()
                cause, phase, name = around.cause() or str(error), around.phase(), around.spec.replica
                around.end(around.segments())
                text = f"{name}: the engine did not start ({phase}): {cause}"
                raise EngineStartError(text, replica=name, phase=phase, cause=cause) from error
            around.started()
            cache.settle(timeline.facts(around.events.read()))

        def shutdown(self, timeout: float | None = None) -> None:
            segments = around.segments()
            super().shutdown(timeout)
            around.end(segments)

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


@contextmanager
def _watched(around: Surroundings) -> Iterator[None]:
    """Kill the engine's processes once its start is overdue: vLLM then raises, and need not notice by itself."""
    over = threading.Event()

    def watch(overdue: Callable[[], bool]) -> None:
        while not over.wait(_POLL_S):
            if overdue():
                around.kill()
                return

    thread = threading.Thread(target=watch, args=(around.overdue,), name="vllm-start", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
