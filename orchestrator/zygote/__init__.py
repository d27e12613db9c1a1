"""Ray workers forked from one process per node that has imported everything already (a zygote, as Android calls it).

Ray starts a worker by a command that `runtime_env={"py_executable": ...}` sets. Ours is `client.py`: it asks the
node's zygote for a fork, and stays as the worker's stand-in for the raylet. The first client of a node starts the
zygote; where there is none, or it fails, the client becomes an ordinary Python, and nothing but time is lost. The
zygote ends with its raylet.
"""

from __future__ import annotations

import shlex
from pathlib import Path


def py_executable(python: str, preload: str) -> str:
    """The command for `runtime_env["py_executable"]`.

    Args:
        python: the interpreter.
        preload: a module whose import is the preloading; its `at_birth()` is called first thing in each fork.
    """
    client = Path(__file__).with_name("client.py")
    return shlex.join([python, "-S", str(client), preload])
