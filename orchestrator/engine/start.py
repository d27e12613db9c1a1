"""A replica's start: restore -> launch -> first token -> publish or abandon.

The only place that knows this order, and what each failure in it leads to. It has two hosts: a replica of a fleet
(fleet/replica.py), and Ray Serve LLM, which makes the engine itself (engine/vllm/serve_hook.py). A start fails only if
the launch or the first token fails. Whatever else goes wrong (cache, other nodes, clock, disk) costs time, and the
report says so.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Protocol, TypeVar

from orchestrator import timeline
from orchestrator.engine.contract import CompileKey
from orchestrator.engine.start_report import StartReport
from orchestrator.errors import EngineStartError, one_line
from orchestrator.graph_cache.restore_result import Outcome, Receipt
from orchestrator.timeline.forecast import Size

T = TypeVar("T")
PUBLISH_WAIT_S = 60.0  # then the replica serves, and publishing goes on beside it
_POLL_S = 0.2


class GraphCache(Protocol):
    """What a start needs of the graph cache; see graph_cache/client.py."""

    def restore(self, factors: Mapping[str, str], cache_root: Path, unshared: str) -> Receipt:
        """Install the graphs for a compile key, or become the one who compiles; neither where a reason says why."""

    def publish(self, receipt: Receipt, facts: timeline.EngineFacts, cache_root: Path) -> Receipt:
        """Judge the receipt by what vLLM reported, and publish what was compiled."""

    def abandon(self, receipt: Receipt) -> None:
        """Let another replica compile."""


class OtherNodes(Protocol):
    """The other nodes of a replica that does not fit one; see fleet/multi_node.py."""

    def prepare(self, key: str) -> list[bool]:
        """Make the replica's folder there, with what vLLM's ranks look for in it, and a key's graphs; "": none."""

    def read_events(self) -> None:
        """Fetch what vLLM said there, into the replica's events."""

    def gather(self, key: str) -> None:
        """Fetch what was compiled there."""

    def clean(self) -> None:
        """Remove the replica's folder there."""


class Processes(Protocol):
    """A watch over the processes of an engine; see engine/vllm/supervisor.py."""

    replica: str

    def begin(self, *, restored: bool) -> None:
        """From here on they are watched."""

    def overdue(self) -> bool:
        """Their start has failed or timed out, whether or not vLLM has noticed."""

    def cause(self) -> str:
        """Why, in vLLM's words; "" where it did not say."""

    def phase(self) -> str:
        """How far the start came."""

    def kill(self) -> None:
        """Kill them."""

    def started(self) -> None:
        """The start is over."""

    def end(self) -> None:
        """Kill what is left of them, and remove what they leave behind."""


class Start:
    """One start. Order of calls: restore and the launch within `launching`, first_token and publish, report.

    Args:
        replica: its name.
        cache: its graph cache.
        events: where its phases are marked.
        cache_root: where graphs are installed, and where vLLM saves them.
        began: when it began on this node, by the monotonic clock; default: now.
        others: the replica's other nodes, if it has some.
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
        size: Callable[[], Size | None] = lambda: None,
    ) -> None:
        self.replica = replica
        self.size = size
        self.receipt = Receipt(Outcome.stock)
        self.restored: bool | None = None  # not known yet, or nothing is shared
        self._cache, self._events, self._root, self._others = cache, events, cache_root, others
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

    def restore(self, compile_key: Callable[[], CompileKey]) -> bool:
        """Install the graphs for a compile key; are they there now? Does not raise, whatever `compile_key` does."""
        self.receipt = self._restored(compile_key)
        self.restored = None if self.receipt.outcome is Outcome.stock else self.receipt.restored
        if self._others:
            try:
                self._others.prepare(self.receipt.key if self.receipt.restored else "")
            except Exception as error:  # ranks there compile, or fail and say so
                self._note(f"the other nodes are not ready: {one_line(error)}")
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
        return StartReport(self.replica, took, receipt, facts, phases, os.getpid(), now - until, size)

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
