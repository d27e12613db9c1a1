"""Events cut into phases: each mark ends the phase before it, so that the parts add up to the whole."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from orchestrator.timeline.events import Event

# vLLM log message -> the phase that it ends. Order within a start is theirs, not this table's.
_PHASE_ENDS = (
    (re.compile(r"Initializing a V\d LLM engine"), "engine process"),
    (re.compile(r"world_size=\d+ rank=0 "), "worker process"),
    (re.compile(r"Starting to load model"), "device setup"),
    (re.compile(r"Model loading took|Loading weights took"), "weights"),
    (re.compile(r"(Starting torch\.compile)"), "profile setup"),
    (re.compile(r"Dynamo bytecode transform time"), "dynamo"),
    (re.compile(r"Directly load AOT compilation from path"), "artifact load"),
    (re.compile(r"saved AOT compiled function to"), "inductor"),
    (re.compile(r"Initial profiling/warmup run took"), "profiling"),
    (re.compile(r"Warming up done"), "profiling"),
    (re.compile(r"Graph capturing finished"), "graph capture"),
    (re.compile(r"init engine \(profile"), "kv cache"),
)
# What the graph cache is about; stock vLLM on CPU reports all of it as "inductor".
COMPILE_PHASES = ("dynamo", "inductor", "artifact load")


@dataclass(frozen=True)
class Phase:
    """A stretch of a start: name, start in seconds since the request, length in seconds."""

    name: str
    start: float
    seconds: float


def phases(events: Iterable[Event], start: float) -> list[Phase]:
    """Cut a start into phases: each mark ends one, and the lengths add up to the last mark minus `start`.

    Args:
        events: a replica's events, by time; those of other nodes have another clock, and are left out.
        start: when the start began, by the node's monotonic clock.
    """
    here = [event for event in events if not event.node and event.t >= start]
    ends = [(event.t, name) for event in here if (name := phase_end(event)) is not None]
    cut: list[Phase] = []
    previous = start
    for t, name in ends:
        if cut and cut[-1].name == name:
            cut[-1] = Phase(name, cut[-1].start, t - start - cut[-1].start)
        else:
            cut.append(Phase(name, previous - start, t - previous))
        previous = t
    return cut


def phase_end(event: Event) -> str | None:
    """The phase that an event ends, if it ends one."""
    if event.kind == "mark":
        return event.text
    if event.kind != "log":
        return None
    return next((name for pattern, name in _PHASE_ENDS if pattern.search(event.text)), None)
