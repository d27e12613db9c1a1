"""How fast this machine is, in a few seconds, so that figures of two machines can be told apart.

Needs nothing but the standard library, and runs as a script: `python orchestrator/cluster/speed.py [MODULE]` prints it.
"""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import tempfile
import time

_LOOPS, _TOUCHED, _READ = 10_000_000, 1 << 29, 1 << 28  # additions; bytes


def measured() -> dict[str, float]:
    """Seconds for ten million additions, for touching 512 MiB of new memory, and for reading a file of 256 MiB.

    The file comes from the disk of the temporary folder, not from memory, as far as the system obeys.
    """
    return {"loop_s": round(_loop(), 3), "page_faults_s": round(_faults(), 3), "file_read_s": round(_read(), 3)}


def _loop() -> float:
    began, total = time.perf_counter(), 0
    for i in range(_LOOPS):
        total += i
    return time.perf_counter() - began


def _faults() -> float:
    began = time.perf_counter()
    with mmap.mmap(-1, _TOUCHED) as memory:
        for offset in range(0, len(memory), mmap.PAGESIZE):
            memory[offset] = 1
    return time.perf_counter() - began


def _read() -> float:
    piece = os.urandom(1 << 20)
    with tempfile.TemporaryFile(buffering=0) as file:
        for _ in range(_READ >> 20):
            file.write(piece)
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        file.seek(0)
        began = time.perf_counter()
        while file.read(1 << 20):
            pass
        return time.perf_counter() - began


def main() -> None:
    """Print a line; with a module's name, how long its first import takes."""
    if sys.argv[1:]:
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", f"import {sys.argv[1]}"], check=False, cwd="/")
        print(f"speed: first import of {sys.argv[1]} {time.perf_counter() - began:.1f} s", flush=True)
        return
    found = measured()
    print(
        f"speed: {_LOOPS // 10**6} million loops {found['loop_s']:.1f} s; {_TOUCHED >> 20} MiB of new memory "
        f"{found['page_faults_s']:.1f} s; a file of {_READ >> 20} MiB {found['file_read_s']:.1f} s",
        flush=True,
    )


if __name__ == "__main__":
    main()
