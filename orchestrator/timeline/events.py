"""What happens during a start, written down by several processes into one file."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path


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
