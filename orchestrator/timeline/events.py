"""What happens during a start, written down by several processes into one file."""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Event:
    """One thing that happened: a kind, the text, and the process it happened in.

    `t` is in seconds of the node's monotonic clock, which all of its processes share, and which nobody sets. `node` is
    the Ray id of another node that it happened on: the replica's own clock knows nothing of that one's.
    """

    t: float
    kind: str  # "mark" (ends the phase named by text), "log", "error"
    text: str
    process: str = ""
    detail: str = ""
    pid: int = 0
    cpu: float = 0.0  # seconds of CPU that the process, and those it waited for (compilers), had used by then
    node: str = ""


class EventLog:
    """An append-only JSON-lines file that several processes write to."""

    def __init__(self, file: str | Path) -> None:
        self.file = Path(file)

    def write(self, event: Event) -> None:
        """Append one event; a single write call, so that lines of several processes do not mix. Does not raise.

        A full disk costs the timeline, and not the start that it is about.
        """
        line = json.dumps(asdict(event)) + "\n"
        with suppress(OSError):
            handle = os.open(self.file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                os.write(handle, line.encode())
            finally:
                os.close(handle)

    def mark(self, phase: str, t: float | None = None) -> None:
        """Say that a phase has just ended."""
        self.write(Event(time.monotonic() if t is None else t, "mark", phase))

    def read(self) -> list[Event]:
        """All events so far: this node's by time, then others'. A line that was cut short (no room) is left out."""
        try:
            lines = self.file.read_text(errors="replace").splitlines()
        except OSError:
            return []
        return sorted((event for line in lines if (event := _parsed(line))), key=lambda event: (event.node, event.t))


def _parsed(line: str) -> Event | None:
    try:
        return Event(**json.loads(line))
    except (ValueError, TypeError):
        return None
