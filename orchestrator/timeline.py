"""Start-up phases as events.

A replica's events come from two places: marks that our own code sets, and vLLM's own log records, which a logging
handler turns into events in every process that vLLM starts (`VLLM_LOGGING_CONFIG_PATH`, vLLM's documented hook). The
handler only reads, so it serves stock vLLM and ours alike. Each mark ends the phase before it, so that the parts add
up to the whole.

This module imports nothing but the standard library: vLLM loads it first thing in each of its processes.
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

_WEIGHTS = re.compile(r"Model loading took|Loading weights took")
# vLLM log message -> the phase that it ends. Order within a start is theirs, not this table's.
_PHASE_ENDS = (
    (re.compile(r"Initializing a V\d LLM engine"), "engine process"),
    (re.compile(r"world_size=\d+ rank=0 "), "worker process"),
    (re.compile(r"Starting to load model"), "device setup"),
    (_WEIGHTS, "weights"),
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
_LOADED = re.compile(r"Directly load AOT compilation from path (\S+?),?$")
_COMPILED = re.compile(r"Starting torch\.compile|torch\.compile and initial profiling")
_WHOLE = re.compile(r"torch\.compile took ([\d.]+) s in total|run together took ([\d.]+) s")
_SAVED = re.compile(r"saved AOT compiled function to (\S+)$")
_AGAIN = re.compile(r"Compiling model again due to a load failure from (\S+), reason: (.*)", re.S)
_COLLECTED = re.compile(r"collected artifacts: \d+ entries, (\d+) artifacts, (\d+) bytes total")
_BLOCKS = re.compile(r"# (?:GPU|CPU) blocks: ([\d,]+)|KV cache size: ([\d,]+) tokens")


@dataclass(frozen=True)
class Event:
    """One thing that happened: seconds since the epoch, a kind, the text, and the process it happened in."""

    t: float
    kind: str  # "mark" (ends the phase named by text), "log", "error"
    text: str
    process: str = ""
    detail: str = ""
    pid: int = 0
    cpu: float = 0.0  # seconds of CPU that the process, and those it waited for (compilers), had used by then


@dataclass(frozen=True)
class Phase:
    """A stretch of a start: name, start in seconds since the request, length in seconds."""

    name: str
    start: float
    seconds: float


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
    kv_tokens: int = 0
    notes: list[str] = field(default_factory=list)  # the plugin's own lines

    def as_dict(self) -> dict[str, Any]:
        """A JSON-ready copy."""
        return asdict(self)


class EventLog:
    """An append-only JSON-lines file that several processes write to."""

    def __init__(self, file: str | Path) -> None:
        self.file = Path(file)

    def write(self, event: Event) -> None:
        """Append one event; a single write call, so that lines of several processes do not mix."""
        line = json.dumps(asdict(event)) + "\n"
        handle = os.open(self.file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(handle, line.encode())
        finally:
            os.close(handle)

    def mark(self, phase: str, t: float | None = None) -> None:
        """Say that a phase has just ended."""
        self.write(Event(time.time() if t is None else t, "mark", phase))

    def read(self) -> list[Event]:
        """All events so far, by time; a half-written last line is left for later."""
        if not self.file.exists():
            return []
        lines = self.file.read_text().split("\n")[:-1]
        return sorted((Event(**json.loads(line)) for line in lines), key=lambda event: event.t)


class VllmLogHandler(logging.Handler):
    """Turns vLLM's log records into events."""

    def __init__(self, file: str) -> None:
        super().__init__(logging.INFO)
        self._log = EventLog(file)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep errors, and the lines that this module knows."""
        try:
            text = record.getMessage()
            process = str(getattr(record, "vllm_process_name", record.processName))
            detail = ""
            if record.exc_info and record.exc_info[1] is not None:
                detail = f"{type(record.exc_info[1]).__name__}: {record.exc_info[1]}"
            kind = "error" if record.levelno >= logging.ERROR else "log"
            if kind == "error" or record.name == "vllm.orchestrator" or _is_known(text):
                cpu = sum(os.times()[:4])
                self._log.write(Event(record.created, kind, text, process, detail, record.process or 0, cpu))
        except Exception:
            self.handleError(record)


def vllm_logging_config(events_file: str) -> dict[str, Any]:
    """A logging configuration for `VLLM_LOGGING_CONFIG_PATH`: vLLM's usual console lines, and our handler."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "vllm": {
                "()": "vllm.logging_utils.NewLineFormatter",
                "datefmt": "%m-%d %H:%M:%S",
                "format": "(%(vllm_process_name)s pid=%(process)d) %(levelname)s %(asctime)s "
                "[%(fileinfo)s:%(lineno)d] %(message)s",
                "log_level": "INFO",
            }
        },
        "handlers": {
            "console": {"class": "logging.StreamHandler", "formatter": "vllm", "stream": "ext://sys.stderr"},
            "events": {"()": "orchestrator.timeline.VllmLogHandler", "file": events_file},
        },
        "loggers": {"vllm": {"handlers": ["console", "events"], "level": "INFO", "propagate": False}},
    }


def phases(events: Iterable[Event], start: float) -> list[Phase]:
    """Cut a start into phases: each mark ends one, and the lengths add up to the last mark minus `start`.

    Args:
        events: a replica's events, by time.
        start: when the start was asked for, in seconds since the epoch.
    """
    ends = [(event.t, name) for event in events if (name := _phase_end(event)) is not None and event.t >= start]
    cut: list[Phase] = []
    previous = start
    for t, name in ends:
        if cut and cut[-1].name == name:
            cut[-1] = Phase(name, cut[-1].start, t - start - cut[-1].start)
        else:
            cut.append(Phase(name, previous - start, t - previous))
        previous = t
    return cut


def facts(events: Iterable[Event]) -> EngineFacts:
    """What vLLM said about its graphs: the only source of a receipt's truth."""
    found = EngineFacts()
    events = list(events)
    found.compile_cpu_s = sum(_compile_cpu(events, pid) for pid in {event.pid for event in events})
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
        if event.text.startswith("kv_update="):
            found.notes.append(event.text)
    return found


def _compile_cpu(events: Iterable[Event], pid: int) -> float:
    own = [event for event in events if event.pid == pid and event.kind == "log"]
    begins = [e.cpu for e in own if "Starting torch.compile" in e.text] or [
        e.cpu for e in own if _WEIGHTS.search(e.text)
    ]
    ends = [event.cpu for event in own if any(p.search(event.text) for p in (_SAVED, _WHOLE, _LOADED))]
    return max(0.0, ends[-1] - begins[0]) if begins and ends else 0.0


def root_cause(events: Iterable[Event]) -> str:
    """The first error that carries an exception: what made everything after it fail. "" where there was none."""
    errors = [event for event in events if event.kind == "error"]
    return next((event.detail for event in errors if event.detail), errors[0].text if errors else "")


def _is_known(text: str) -> bool:
    patterns = (_LOADED, _COMPILED, _WHOLE, _SAVED, _AGAIN, _COLLECTED, _BLOCKS)
    return any(p.search(text) for p in patterns) or any(p.search(text) for p, _ in _PHASE_ENDS)


def _phase_end(event: Event) -> str | None:
    if event.kind == "mark":
        return event.text
    if event.kind != "log":
        return None
    return next((name for pattern, name in _PHASE_ENDS if pattern.search(event.text)), None)
