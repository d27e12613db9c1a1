"""OpenMP's environment for a fork: libgomp read it when it was loaded, in the zygote, which was too early."""

from __future__ import annotations

import os
import re

from orchestrator.vllm_plugin.settings import logger

_CORES = "GOMP_CPU_AFFINITY"
_THREADS = "OMP_NUM_THREADS"
_RANGE = re.compile(r"(\d+)(?:-(\d+)(?::(\d+))?)?")  # first, last, stride


def adopt() -> None:
    """Apply what the environment says now, as libgomp would; what it would not understand is ignored, with a line.

    vLLM's CPU executor sets both for each worker (`OMPProcessManager`); Ray and vLLM's GPU executor set the number of
    threads alone. Where only cores are named, each gets a thread.
    """
    import torch

    cores = threads = None
    if said := os.environ.get(_CORES):
        try:
            cores = parse_cores(said)
            os.sched_setaffinity(0, cores)
        except (ValueError, OSError) as error:
            cores = None
            logger.warning("%s=%r is ignored: %s", _CORES, said, error)
    if said := os.environ.get(_THREADS):
        try:
            threads = parse_threads(said)
        except ValueError as error:
            logger.warning("%s=%r is ignored: %s", _THREADS, said, error)
    if number := threads or len(cores or ()):
        torch.set_num_threads(number)


def parse_cores(said: str) -> set[int]:
    """The cores of GOMP_CPU_AFFINITY: numbers and ranges with strides, between commas or spaces (`0 3 8-15:2`).

    Raises:
        ValueError: libgomp would not understand it.
    """
    found: set[int] = set()
    for part in re.split(r"\s*,\s*|\s+", said.strip()):
        match = _RANGE.fullmatch(part)
        first, last, stride = (int(n) if n else None for n in match.groups()) if match else (None, None, None)
        if first is None or stride == 0 or (last is not None and last < first):
            raise ValueError(f"{part!r} is neither a core nor a range of cores")
        found |= set(range(first, (first if last is None else last) + 1, stride or 1))
    return found


def parse_threads(said: str) -> int:
    """The number of threads in OMP_NUM_THREADS; of a list, which is by depth of nesting, the first.

    Raises:
        ValueError: libgomp would not understand it.
    """
    first = said.split(",")[0].strip()
    if not first.isdecimal() or int(first) < 1:
        raise ValueError(f"{first!r} is no number of threads")
    return int(first)
