"""What vLLM itself said about its graphs, read from its log lines."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from orchestrator.compat import PREFIX, table
from orchestrator.timeline.events import Event

_WEIGHTS = re.compile(r"Model loading took|Loading weights took")
_LOADED = re.compile(r"Directly load AOT compilation from path (.+?),?$")
_COMPILED = re.compile(r"Starting torch\.compile|torch\.compile and initial profiling")
_WHOLE = re.compile(r"torch\.compile took ([\d.]+) s in total|run together took ([\d.]+) s")
_SAVED = re.compile(rf"{re.escape(table.SAVED.text)} (.+)$")
_AGAIN = re.compile(rf"{re.escape(table.AGAIN.text)} (.+?), reason: (.*)", re.S)
_COLLECTED = re.compile(r"collected artifacts: \d+ entries, (\d+) artifacts, (\d+) bytes total")
_NO_PLAN = re.compile(r"Startup plan not applied: (.+)", re.S)
_BLOCKS = re.compile(r"# (?:GPU|CPU) blocks: ([\d,]+)|KV cache size: ([\d,]+) tokens")


@dataclass
class EngineFacts:
    """What vLLM itself said about its graphs during a start."""

    loaded: int = 0  # AOT artifacts loaded, over all ranks and compiled models
    compiled: int = 0  # compiles begun
    saved: list[str] = field(default_factory=list)  # files written
    again: list[str] = field(default_factory=list)  # why a present artifact was not loaded
    compile_s: float = 0.0
    compile_cpu_s: float = 0.0  # of CPU, over all ranks: from the compile's begin, or the weights, to its last word
    artifacts: int = 0  # unique compiled artifacts of a compile, all its pieces together
    artifact_bytes: int = 0
    kv_tokens: int = 0  # room in the KV cache
    no_plan: str = ""  # why vLLM measured memory anew, though it had a start-up plan
    notes: list[str] = field(default_factory=list)  # the plugin's own lines

    def as_dict(self) -> dict[str, Any]:
        """A JSON-ready copy."""
        return asdict(self)


def facts(events: Iterable[Event]) -> EngineFacts:
    """What vLLM said about its graphs: the only source of a receipt's truth."""
    found = EngineFacts()
    events = list(events)
    found.compile_cpu_s = sum(_compile_cpu(events, *process) for process in {(e.node, e.pid) for e in events})
    for event in events:
        if event.kind != "log":
            continue
        found.loaded += bool(_LOADED.search(event.text))
        found.compiled += bool(_COMPILED.search(event.text))
        if match := _SAVED.search(event.text):
            found.saved.append(match[1])
        if match := _AGAIN.search(event.text):
            found.again.append(match[2])
        if match := _WHOLE.search(event.text):
            found.compile_s = max(found.compile_s, float(match[1] or match[2]))
        if match := _COLLECTED.search(event.text):
            found.artifacts, found.artifact_bytes = int(match[1]), int(match[2])
        if match := _BLOCKS.search(event.text):
            found.kv_tokens = int((match[1] or match[2]).replace(",", ""))
        if match := _NO_PLAN.search(event.text):
            found.no_plan = match[1]
        if event.text.startswith(("kv_update=", "trace_once")):
            found.notes.append(event.text)
    return found


def notes(events: Iterable[Event]) -> tuple[str, ...]:
    """What is off, or passed by, in the engine's processes, as `compat` says it; each once."""
    found = [e.text.removeprefix(PREFIX) for e in events if e.kind == "log" and e.text.startswith(PREFIX)]
    return tuple(dict.fromkeys(found))


def _compile_cpu(events: Iterable[Event], node: str, pid: int) -> float:
    own = [event for event in events if (event.node, event.pid, event.kind) == (node, pid, "log")]
    begins = [e.cpu for e in own if table.BEGUN.text in e.text] or [e.cpu for e in own if _WEIGHTS.search(e.text)]
    ends = [event.cpu for event in own if any(p.search(event.text) for p in (_SAVED, _WHOLE, _LOADED))]
    return max(0.0, ends[-1] - begins[0]) if begins and ends else 0.0


def root_cause(events: Iterable[Event]) -> str:
    """The first error that carries an exception: what made everything after it fail. "" where there was none."""
    errors = [event for event in events if event.kind == "error"]
    return next((event.detail for event in errors if event.detail), errors[0].text if errors else "")


def is_fact(text: str) -> bool:
    """Is this a log line that `facts` reads?"""
    return any(p.search(text) for p in (_LOADED, _COMPILED, _WHOLE, _SAVED, _AGAIN, _COLLECTED, _BLOCKS, _NO_PLAN))
