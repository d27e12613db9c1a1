"""Triton's cache on disk as it is, and a note of what was looked up in it: by TRITON_CACHE_MANAGER, Triton's own hook.

Only Triton imports this, in each process that asks for a kernel.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from triton.runtime.cache import FileCacheManager  # type: ignore[import-not-found]

from orchestrator.vllm_plugin.settings import KERNELS_USED


class RecordingCacheManager(FileCacheManager):  # type: ignore[misc]
    """Notes the keys of the cache that are asked for, found or not; see `kernel_caches.collect`."""

    def __init__(self, key: str, *args: Any, **kwargs: Any) -> None:
        super().__init__(key, *args, **kwargs)
        folder = os.environ.get(KERNELS_USED)
        if folder and not any(args) and not any(kwargs.values()):  # those are Triton's overrides and dumps
            with suppress(OSError):
                Path(folder).mkdir(parents=True, exist_ok=True)
                Path(folder, Path(key).name).touch()
