"""A zygote's preload module that imports next to nothing; with ORCHESTRATOR_TEST_BROKEN set it cannot be imported."""

import os
import sys

import ray._private.workers.default_worker  # noqa: F401

if os.environ.get("ORCHESTRATOR_TEST_BROKEN"):
    raise ImportError("as told")


def at_birth() -> None:
    sys.born_of_a_zygote = True
