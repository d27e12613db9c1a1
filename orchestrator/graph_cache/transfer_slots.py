"""Who may fetch a bundle now: as many nodes at once as have it, so that it spreads like a tree.

Ray's nodes pull an object from any node that has it by then. Were a thousand to ask at once, all would ask its first
holder, one after the other over one link; in turns the number of holders doubles each time (bench=simulate has both).
"""

from __future__ import annotations

import asyncio

PER_COPY = 1  # a link that serves two at once serves neither sooner
_TURN_S = 60.0  # then the node is taken for dead


class Turns:
    """The turns of one bundle, of which there is one copy at first. Belongs to one event loop."""

    def __init__(self) -> None:
        self._free = asyncio.Semaphore(PER_COPY)
        self._running: dict[str, asyncio.TimerHandle] = {}

    async def take(self, who: str, wait_s: float) -> bool:
        """Wait for a turn; False if there was none within `wait_s` seconds."""
        if who in self._running:  # it asks again: its first answer was lost
            return True
        try:
            await asyncio.wait_for(self._free.acquire(), wait_s)
        except TimeoutError:
            return False
        if who in self._running:  # it asked twice, and waited twice
            self._free.release()
            return True
        self._running[who] = asyncio.get_running_loop().call_later(_TURN_S, self.give_back, who, False)
        return True

    def give_back(self, who: str, copied: bool) -> None:
        """End a turn; `copied`: there is one more copy to fetch from."""
        if (timer := self._running.pop(who, None)) is not None:
            timer.cancel()
            for _ in range(1 + PER_COPY * copied):
                self._free.release()
