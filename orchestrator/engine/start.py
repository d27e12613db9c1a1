"""A replica's start: model files -> restore -> launch -> first token -> publish or abandon.

The only place that knows this order, and what each failure in it leads to. It has two hosts: a replica of a fleet
(fleet/replica.py), and Ray Serve LLM, which makes the engine itself (engine/vllm/serve_hook.py). A start fails only if
the model does not come, or the launch or the first token fails. Whatever else goes wrong (cache, other nodes, clock,
disk) costs time, and the report says so.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import TypeVar

from orchestrator import timeline
from orchestrator.engine.contract import CompileKey
from orchestrator.engine.start_needs import GraphCache, ModelFiles, OtherNodes, Processes
from orchestrator.engine.start_report import StartReport
from orchestrator.errors import EngineStartError, one_line
from orchestrator.graph_cache.restore_result import Outcome, Receipt
from orchestrator.timeline.forecast import Size

T = TypeVar("T")
PUBLISH_WAIT_S = 60.0  # then the replica serves, and publishing goes on beside it
_POLL_S = 0.2


class Start:
    """One start.

    Order of calls: configuration, restore and the launch within `launching`, first_token and publish, report.

    Args:
        replica: its name.
        cache: its graph cache.
        events: where its phases are marked.
        cache_root: where graphs are installed, and where vLLM saves them.
        began: when it began on this node, by the monotonic clock; default: now.
        others: the replica's other nodes, if it has some.
        files: the model, if it is on its way to this node.
        size: says what it has to bring up; while the hub's files come it grows, so it is asked anew each time.
    """

    def __init__(
        self,
        replica: str,
        cache: GraphCache,
        events: timeline.EventLog,
        cache_root: Path,
        *,
        began: float | None = None,
        others: OtherNodes | None = None,
        files: ModelFiles | None = None,
        size: Callable[[], Size | None] = lambda: None,
    ) -> None:
        self.replica = replica
        self.size = size
        self.receipt = Receipt(Outcome.stock)
        self.restored: bool | None = None  # not known yet, or nothing is shared
        self._cache, self._events, self._root, self._others, self._files = cache, events, cache_root, others, files
        self._began = time.monotonic() if began is None else began
        self._first_token_at: float | None = None

    @contextmanager
    def launching(self) -> Iterator[None]:
        """What is raised in it has failed the start: another replica may compile now, and the error goes on."""
        try:
            yield
        except BaseException:
            with suppress(Exception):
                self._cache.abandon(self.receipt)
            self.end()
            raise

    def configuration(self) -> None:
        """Wait until the model's configuration is on this node.

        Raises:
            EngineStartError: it does not come.
        """
        if self._files:
            self._files.configuration()

    def restore(self, compile_key: Callable[[], CompileKey]) -> bool:
        """Install the graphs for a compile key, and wait until the whole model is on this node; are the graphs there?

        Whatever `compile_key` and the graph cache do fails nothing.

        Raises:
            EngineStartError: the model does not come.
        """
        self.receipt = self._restored(compile_key)
        self.restored = None if self.receipt.outcome is Outcome.stock else self.receipt.restored
        if self._others:
            try:
                self._others.prepare(self.receipt.key if self.receipt.restored else "")
            except Exception as error:  # ranks there compile, or fail and say so
                self._note(f"the other nodes are not ready: {one_line(error)}")
        if self._files:
            self._files.all()
        return self.receipt.restored

    def first_token(self) -> None:
        """The engine has generated a token."""
        self._first_token_at = time.monotonic()
        self._events.mark("first token", self._first_token_at)

    def publish(self) -> None:
        """Judge the receipt, and publish what was compiled. Does not raise, and waits for PUBLISH_WAIT_S at most."""
        thread = threading.Thread(target=self._publish, name="publish", daemon=True)
        thread.start()
        thread.join(PUBLISH_WAIT_S)
        if thread.is_alive():
            self._note(f"still being published after {PUBLISH_WAIT_S:g} s")

    def report(self) -> StartReport:
        """How it went."""
        now = time.monotonic()
        until = self._first_token_at or now
        events = self._events.read()
        receipt = replace(self.receipt, notes=timeline.notes(events))
        phases = tuple(timeline.phases(events, self._began))
        facts = timeline.facts(events)
        took, size = until - self._began, self.size()
        brought = self._files.brought if self._files else None
        model = asdict(brought) if brought else None
        return StartReport(self.replica, took, receipt, facts, phases, os.getpid(), now - until, size, model)

    def end(self) -> None:
        """The engine has ended, or was none: nothing of it stays on other nodes."""
        if self._others:
            with suppress(Exception):  # a node is gone
                self._others.clean()

    def _restored(self, compile_key: Callable[[], CompileKey]) -> Receipt:
        try:
            known = compile_key()
        except Exception as error:  # a replica without a GPU of its own cannot ask for its capability
            return Receipt(Outcome.failed, f"no compile key: {one_line(error)}")
        try:
            return self._cache.restore(known.factors, self._root, known.unshared)
        except Exception as error:
            return Receipt(Outcome.failed, one_line(error))

    def _publish(self) -> None:
        try:
            if self._others:
                self._others.read_events()
            facts = timeline.facts(self._events.read())
            if self._others and facts.compiled:
                self._others.gather(self.receipt.key)
            self.receipt = self._cache.publish(self.receipt, facts, self._root)
        except Exception as error:  # it serves all the same
            with suppress(Exception):
                self._cache.abandon(self.receipt)
            self._note(f"not published: {one_line(error)}")

    def _note(self, reason: str) -> None:
        self.receipt = replace(self.receipt, reason="; ".join(filter(None, [self.receipt.reason, reason])))


def launch(processes: Processes, build: Callable[[], T], *, restored: bool) -> T:
    """Run `build`, which starts an engine and returns once it is up, under the engine's deadline.

    Once the start has failed or is overdue the engine's processes are killed: vLLM, which may not have noticed, raises.

    Args:
        processes: the watch over what `build` starts.
        build: runs in the calling thread.
        restored: graphs for its compile key are installed.

    Raises:
        EngineStartError: with the root cause, and with no process left.
    """
    over = threading.Event()

    def watch() -> None:
        while not over.wait(_POLL_S):
            if processes.overdue():
                processes.kill()
                return

    thread = threading.Thread(target=watch, name="engine-start", daemon=True)
    try:
        processes.begin(restored=restored)
        thread.start()
        made = build()
    except Exception as error:
        over.set()
        raise failure(processes, error) from error
    except BaseException:  # this process is told to end
        over.set()
        processes.end()
        raise
    over.set()
    thread.join()
    with suppress(Exception):  # it is up; what is noted for later is not worth its end
        processes.started()
    return made


def failure(processes: Processes, error: BaseException | None) -> EngineStartError:
    """End what is left of an engine that did not start, and say why it did not."""
    cause, phase = "", "start"
    with suppress(Exception):
        cause, phase = processes.cause(), processes.phase()
    cause = cause or (one_line(error) if error else "")
    with suppress(Exception):
        processes.end()
    text = f"{processes.replica}: the engine did not start ({phase}): {cause}"
    return EngineStartError(text, replica=processes.replica, phase=phase, cause=cause)
