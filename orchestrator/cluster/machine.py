"""What this machine lets us use, counted as Ray counts it: in a container that is less than the machine has."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_SHARED = Path("/dev/shm")  # noqa: S108
# quota, and its period, in microseconds: of cgroups' version 1, and of version 2 in one file
_QUOTA = (("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"), ("cpu.max",))
_MEMORY = ("memory/memory.limit_in_bytes", "memory.max")


def cpus() -> int:
    """CPUs that this process may keep busy: its cores, or its cgroup's quota in whole CPUs, at least 1."""
    cores = len(os.sched_getaffinity(0))
    return cores if (quota := cpu_quota()) is None else max(1, min(cores, int(quota)))


def cpu_quota() -> float | None:
    """CPUs' time that the cgroup gives; None: no limit."""
    for names in _QUOTA:
        with suppress(OSError, ValueError, ZeroDivisionError):
            quota, period = " ".join((_CGROUP / name).read_text() for name in names).split()
            return int(quota) / int(period) if int(quota) > 0 else None
    return None


def memory() -> int:
    """Bytes of memory: the machine's, or its cgroup's limit."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for name in _MEMORY:
        with suppress(OSError, ValueError):  # "max": none
            limits.append(int((_CGROUP / name).read_text()))
    return min(limits)


def shared_memory() -> int:
    """Free bytes of shared memory, where Ray's object store is."""
    found = os.statvfs(_SHARED)
    return found.f_bavail * found.f_frsize
