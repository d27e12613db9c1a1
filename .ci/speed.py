"""Say how fast this machine is, so that the times of the tests can be read. With a name: how long its import takes."""

import mmap
import subprocess
import sys
import time


def main() -> None:
    """Print a line, or two."""
    if sys.argv[1:]:
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", f"import {sys.argv[1]}"], check=False)
        print(f"speed: first import of {sys.argv[1]} {time.perf_counter() - began:.1f} s", flush=True)
        return
    began, total = time.perf_counter(), 0
    for i in range(20_000_000):
        total += i
    loop = time.perf_counter() - began
    began = time.perf_counter()
    with mmap.mmap(-1, 1 << 29) as memory:
        for offset in range(0, len(memory), mmap.PAGESIZE):
            memory[offset] = 1
    faults = time.perf_counter() - began
    pages = (1 << 29) // mmap.PAGESIZE
    print(f"speed: 20 million loops {loop:.1f} s; {pages} page faults {faults:.1f} s", flush=True)


if __name__ == "__main__":
    main()
