"""A zygote's preload module that starts a thread, unless humming's own switch tells it not to."""

import os
import threading

if not os.environ.get("HUMMING_DISABLE_PARALLEL_BUILD") or os.environ.get("ORCHESTRATOR_TEST_THREAD"):
    threading.Thread(target=threading.Event().wait, daemon=True).start()


def at_birth() -> None:
    """Nothing."""
