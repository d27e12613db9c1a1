"""Ray: a raylet gives its agents 15 s to write down the ports that they chose, and aborts after that (Ray issue 65983).

On a slow or busy machine the agents' imports alone take longer, and `ray.init()` fails. Here every agent is made 20 s
late; no setting lengthens the wait. Ports that are given are not waited for.

Run: python docs/upstream/ray_agent_ports.py
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import ray

LATE = """
import sys, time
if any(word.endswith("agent.py") or word.endswith("main.py") and "runtime_env" in word for word in sys.orig_argv):
    time.sleep(20)
"""


def main() -> None:
    """Start a local Ray whose agents are late."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "sitecustomize.py").write_text(LATE)
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [folder, os.environ.get("PYTHONPATH", "")]))
        began = time.monotonic()
        try:
            ray.init(address="local", num_cpus=1, logging_level="ERROR")
            print(f"ray {ray.__version__}: started after {time.monotonic() - began:.0f} s")
        except Exception as error:
            said = " ".join(str(error).split())[:200]
            print(f"ray {ray.__version__}: failed after {time.monotonic() - began:.0f} s: {said}")
        ray.shutdown()


if __name__ == "__main__":
    main()
