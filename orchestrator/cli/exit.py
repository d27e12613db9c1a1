"""How a command ends: one exit code, and for a job one RESULT line, the last on stdout.

Exit codes: 0 all well; 1 it failed, or replicas did not share graphs or tokens, or an entry is not authentic; 2 the
configuration or the command line is wrong; 130 interrupted (143 by SIGTERM); 141 nobody read what it printed.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from orchestrator import paths
from orchestrator.errors import ConfigError, OrchestratorError

FAILED, WRONG, UNREAD = 1, 2, 128 + signal.SIGPIPE  # the last as a shell has it


class Ending:
    """What is known of a job's end; figures stay when something fails after them."""

    def __init__(self) -> None:
        self._result: dict[str, Any] | None = None  # None: nothing ran, as with --help; then there is no RESULT line
        self.code = 0

    def done(self, result: Mapping[str, Any], code: int | None = None) -> None:
        """The job is done, well or not; takes the place of what was known before."""
        self._result = dict(result)
        self.code = int(not result["ok"]) * FAILED if code is None else code

    def failed(self, line: str, code: int) -> None:
        """Something failed: it is told now, and again in the RESULT line, after earlier errors.

        The first failure's exit code stays, but an interrupt's takes its place.
        """
        _tell(line)
        known = self._result or {}
        earlier = [known["error"]] if known.get("error") else []
        self._result = {**known, "ok": False, "error": "; then: ".join([*earlier, line])}
        self.code = code if not self.code or code > 128 else self.code

    def finish(self) -> int:
        """Print the RESULT line, if the job ran; returns the exit code."""
        return read(self._say)

    def _say(self) -> int:
        if self._result is not None:
            print("RESULT " + paths.shown(json.dumps(self._result, default=str)))
        return self.code


class Interrupts:
    """Ctrl-C, and SIGTERM, which `ray job stop` and containers send."""

    def __init__(self) -> None:
        self._number = 0
        self._deaf = False

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Within, both raise KeyboardInterrupt in the main thread."""
        before = {number: signal.signal(number, self._hear) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def take(self) -> int:
        """Which signal came since the last call; 0: none."""
        number, self._number = self._number, 0
        return number

    def ignore(self) -> None:
        """From here on nothing comes between the job and its last line."""
        self._deaf = True

    def _hear(self, number: int, _: object) -> None:
        if not self._deaf:
            self._number = number  # Ray's processes get it too: what they then raise may be seen first
            raise KeyboardInterrupt


def read(command: Callable[[], int]) -> int:
    """Run what prints its answer on stdout; returns the exit code, without a traceback where nobody reads it."""
    try:
        code = command()
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more when it exits
        return UNREAD
    return code


def plain(command: Callable[[], int]) -> int:
    """Run a command that has no RESULT line; returns the exit code, after one line about what went wrong."""
    try:
        return read(command)
    except KeyboardInterrupt:
        _tell("interrupted")
        return 128 + signal.SIGINT
    except OrchestratorError as error:
        _tell(str(error))
        return WRONG
    except OSError as error:
        refused = paths.refusal(error, {})
        _tell(one_line(refused or error))
        return WRONG if refused else FAILED


def code_of(error: BaseException) -> int:
    """The exit code of a job that ended with this error."""
    return WRONG if _is_about_configuration(error) else FAILED


def one_line(error: BaseException) -> str:
    """An error as a person is told."""
    if isinstance(error, OrchestratorError):
        return str(error)
    text = " ".join(str(error).split())
    return text if _is_about_configuration(error) else f"{type(error).__name__}: {text}"


def _is_about_configuration(error: BaseException) -> bool:
    return isinstance(error, ConfigError) or type(error).__module__.startswith(("hydra.", "omegaconf."))


def _tell(line: str) -> None:
    with suppress(OSError):  # nobody reads it; the RESULT line and the exit code say it too
        print(f"error: {paths.shown(line)}", file=sys.stderr)
