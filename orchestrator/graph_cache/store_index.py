"""What lies in the durable store, as the registry knows it: read once, and waited for only as long as one may."""

from __future__ import annotations

import asyncio
from typing import Any

from orchestrator.graph_cache.store import Store

Headers = dict[str, dict[str, Any]]  # by key


class StoreIndex:
    """Headers of all entries. A listing reads each of them: it takes long where there are many."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._headers: Headers | None = None
        self._reading: asyncio.Task[None] | None = None

    async def headers(self) -> Headers:
        """All of them.

        Raises:
            OSError: the store does not answer.
        """
        if self._headers is None:
            await asyncio.shield(self._read())
        return self._headers or {}

    async def soon(self, seconds: float) -> Headers:
        """All of them, or none if they are not read within these seconds; the reading goes on."""
        if self._headers is None:
            await asyncio.wait([self._read()], timeout=seconds)
        return self._headers or {}

    def forget(self, key: str) -> None:
        """An entry is gone."""
        (self._headers or {}).pop(key, None)

    def _read(self) -> asyncio.Task[None]:
        """The one reading, for all who ask."""
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._list())
            self._reading.add_done_callback(lambda task: task.cancelled() or task.exception())  # looked at: no warning
        return self._reading

    async def _list(self) -> None:
        self._headers = await asyncio.to_thread(lambda: dict(self._store.entries()))
