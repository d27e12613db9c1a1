"""Every name of vLLM, Ray and torch that we lean on without a promise, and the only way to reach or patch one.

`table.py` says what each is for and what is off without it. A name that is gone, or that takes other parameters, turns
its features off, and nothing else; a line says so ("short profile off: CPUModelRunner.profile_run is gone"), which ends
up in the replica's receipt. Nothing heavy is imported here: what uses a name has imported its library anyway.
"""

from orchestrator.compat.lookup import of_this_vllm
from orchestrator.compat.moved import follow
from orchestrator.compat.patching import (
    PREFIX,
    Gone,
    answered,
    check,
    get,
    load,
    notes,
    on,
    patch,
    read,
    replaced,
    tell,
)

__all__ = [
    "PREFIX",
    "Gone",
    "answered",
    "check",
    "follow",
    "get",
    "load",
    "notes",
    "of_this_vllm",
    "on",
    "patch",
    "read",
    "replaced",
    "tell",
]
