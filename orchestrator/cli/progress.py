"""What a terminal shows while a job works."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import rich.progress
from rich.console import Console
from rich.text import Text

from orchestrator import paths


class Progress:
    """A live line that says what happens, and a line for each thing that is done.

    Attributes:
        console: for what is printed besides.
        log: a file that keeps the lines. A job that is killed has told its figures so far.
    """

    def __init__(self, console: Console, log: Path) -> None:
        self.console, self.log = console, log
        self._status = console.status("starting")
        self._began = time.monotonic()
        self._last: dict[str, str] = {}
        self._bar: rich.progress.Progress | None = None

    def __enter__(self) -> Progress:
        self._status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._status.stop()
        if self._bar is not None:
            self._bar.stop()

    def bar(self, done: int, of: int) -> None:
        """A bar instead of the line, from here on; where the terminal is not live, a line each ten seconds."""
        if self._bar is None:
            self._status.stop()
            columns = (*rich.progress.Progress.get_default_columns(), rich.progress.MofNCompleteColumn())
            self._bar = rich.progress.Progress(*columns, console=self.console)
            self._bar.add_task("answers", total=of, completed=done)
            self._bar.start()
            self._said = time.monotonic()
        self._bar.update(rich.progress.TaskID(0), completed=done)
        if not self.console.is_terminal and (done == of or time.monotonic() - self._said > 10.0):
            self._said = time.monotonic()
            self.say("answers", f"{done} of {of}")

    def say(self, who: str, what: str) -> None:
        """Show what `who` does; only changes are printed where the terminal is not live."""
        what = paths.shown(what)
        if self._last.get(who) == what:
            return
        self._last[who] = what
        elapsed = time.monotonic() - self._began
        self._status.update(Text(f"{who}: {what}"))
        self.console.log(Text.assemble((f"{elapsed:6.1f} s", "dim"), " ", (who, "bold"), f" {what}"))
        with suppress(OSError), self.log.open("a") as log:
            log.write(f"{elapsed:.1f} s {who} {what}\n")
