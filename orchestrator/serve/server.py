"""A replica of a model: Ray Serve LLM's server, ready and healthy only if it generates."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import ray
from ray.exceptions import RayError
from ray.serve.llm.deployment import LLMServer

from orchestrator.cluster import prestart
from orchestrator.engine.start_report import StartReport
from orchestrator.engine.vllm import serve_hook
from orchestrator.errors import EngineDeadError, one_line
from orchestrator.serve import metrics
from orchestrator.serve.callback import FastColdStart
from orchestrator.serve.status_board import Board

_TELL_S = 1.0


class Server(LLMServer):
    """Needs `FastColdStart` as the configuration's callback."""

    async def start(self) -> None:
        """Start the engine; returns after its first token."""
        callback = self._llm_config.get_or_create_callback()
        if not isinstance(callback, FastColdStart):
            raise TypeError("Server needs callback_config.callback_class=orchestrator.serve.callback.FastColdStart.")
        self._board = Board.connect(callback.app.cluster.namespace)
        with self._told(callback):
            await super().start()
        self._start = callback.started()
        self._settings = callback.app.serve
        self._last_token = 0.0
        self._probes = 0
        await self._probe()
        report = self._start.ready()
        if self._start.prestart_worker:
            prestart.later()
        self._worker = callback.app.serve.name, prestart.environment_here()
        self._report = {"model": self._start.model_id, "node": _node(), "since": time.time(), **report.as_dict()}
        self._metrics = asyncio.get_running_loop().create_task(self._keep_told(report))

    async def _keep_told(self, report: StartReport) -> None:
        """Tell the board, and Prometheus: what the start was expected to take, and what it took."""
        with suppress(RayError):  # the board is being restarted, and will be told again
            self._report["expected"] = await self._board.tell.remote(self._report)
            await self._board.tell_worker.remote(*self._worker)
        await metrics.keep_told(self._start.model_id, report, self._report.get("expected"))

    @contextmanager
    def _told(self, callback: FastColdStart) -> Iterator[None]:
        """Within, the board is told how far the start is: by a thread, for the start keeps the event loop busy."""
        over, node = threading.Event(), _node()

        def tell() -> None:
            while not over.wait(_TELL_S):
                if callback.start is not None:
                    with suppress(OSError):  # its events cannot be read
                        self._board.tell_start.remote({"node": node, **callback.start.progress()})

        thread = threading.Thread(target=tell, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    async def check_health(self) -> None:
        """Return if the engine generates: any request got a token lately, or a probe gets one in time.

        Raises:
            EngineDeadError: it does not; after three of these Ray Serve replaces the replica. Never a class of vLLM's:
                Ray Serve's controller would import vLLM to read it, and answer nobody meanwhile.
        """
        try:
            await super().check_health()
        except Exception as error:
            raise EngineDeadError(f"{self._start.name}: {one_line(error)}", replica=self._start.name) from None
        if (began := time.monotonic()) - self._token() > self._settings.health_period_s:
            try:
                async with asyncio.timeout(self._settings.health_timeout_s):
                    await self._probe()
            except TimeoutError as error:
                if self._token() < began:  # else the probe waits its turn behind others
                    within = f"serve.health_timeout_s={self._settings.health_timeout_s:g}"
                    text = f"{self._start.name}: no token within {within}"
                    raise EngineDeadError(text, replica=self._start.name) from error
        self._board.tell.remote(self._report)
        self._board.tell_worker.remote(*self._worker)

    def _token(self) -> float:
        """When the engine generated a token last, for whomever."""
        return max(self._last_token, getattr(self.engine._engine_client, "last_token", 0.0))

    async def _probe(self) -> None:
        self._probes += 1
        await serve_hook.first_token(self.engine._engine_client, f"probe-{self._probes}")
        self._last_token = time.monotonic()

    async def __del__(self) -> None:
        """Ray Serve calls this when a replica goes."""
        client = getattr(getattr(self, "engine", None), "_engine_client", None)
        if client is not None:
            await asyncio.to_thread(client.shutdown)


def _node() -> str:
    return str(ray.get_runtime_context().get_node_id())
