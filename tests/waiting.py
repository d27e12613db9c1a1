"""Waiting in tests: a deadline here ends a hang; it never measures. A slow machine takes as long as it takes."""

from __future__ import annotations

import time
from collections.abc import Callable

HANG_S = 1200.0


def wait_for(condition: Callable[[], object], what: str | Callable[[], str] = "", pause_s: float = 0.1) -> None:
    """Return when the condition holds.

    Args:
        condition: asked again and again; what it raises is a failed test.
        what: said if it does not hold in `HANG_S` seconds.
    """
    deadline = time.monotonic() + HANG_S
    while not condition():
        assert time.monotonic() < deadline, what() if callable(what) else what or "it hangs"
        time.sleep(pause_s)
