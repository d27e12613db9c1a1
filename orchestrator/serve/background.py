"""Work beside requests, again and again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

logger = logging.getLogger("ray.serve")


async def repeat(step: Callable[[], None], period_s: float, lost: str) -> None:
    """Call a function in a thread, until cancelled; a failure costs nothing but that turn.

    Args:
        step: the function.
        period_s: seconds between two calls.
        lost: what is missing while it fails; logged with the failure, once.
    """
    failed = ""
    while True:
        try:
            await asyncio.to_thread(step)
        except Exception as error:
            if failed != (failed := f"{type(error).__name__}: {error}"):
                logger.warning("%s: %s", lost, failed)
        await asyncio.sleep(period_s)
