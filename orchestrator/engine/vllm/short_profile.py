"""On CPU, a replica that restored its graphs and was told its KV-cache size has nothing to learn from a profiling run.

vLLM's CPU worker runs the largest batch that it may get (`max_num_batched_tokens`), for three reasons: to compile, to
see how much memory is left for the KV cache, and to have met that shape before. With graphs restored and the size of
the KV cache set, the first two are settled, so a few tokens are enough to load the graphs and run each kernel once. On
GPUs the run also allocates workspaces of the largest shape, which is why it stays as it is there.
"""

from __future__ import annotations

from typing import Any

from orchestrator import compat
from orchestrator.compat import features, table

VARIABLE = "ORCHESTRATOR_SHORT_PROFILE"
_TOKENS = 16


def install() -> None:
    """Shorten the run in this process, for engines whose KV-cache size is set."""
    if compat.on(features.SHORT_PROFILE):
        compat.patch(table.PROFILE_RUN, _shortened)


def _shortened(whole: Any) -> Any:
    def profile_run(self: Any, *args: Any, **kwargs: Any) -> None:
        if self.cache_config.kv_cache_memory_bytes is None:
            whole(self, *args, **kwargs)
            return
        largest, self.max_num_tokens = self.max_num_tokens, min(self.max_num_tokens, _TOKENS)
        try:
            whole(self, *args, **kwargs)
        finally:
            self.max_num_tokens = largest

    return profile_run
