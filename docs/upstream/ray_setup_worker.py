"""Ray: each worker with a runtime environment imports all of Ray only to start another program.

A raylet starts `setup_worker.py`, which needs a dataclass and an enum, and imports the package `ray` for them. Then it
becomes `default_worker.py`, which imports it again.

Run: python docs/upstream/ray_setup_worker.py
"""

from __future__ import annotations

import subprocess
import sys
import time

from ray import __version__


def main() -> None:
    """Time its imports beside those of a Python that imports nothing."""
    for program in ("pass", "import ray._private.workers.setup_worker"):
        took = []
        for _ in range(5):
            began = time.perf_counter()
            subprocess.run([sys.executable, "-c", program], check=True)
            took.append(time.perf_counter() - began)
        print(f"ray {__version__}: {program!r} {sorted(took)[2]:.2f} s")


if __name__ == "__main__":
    main()
