"""Start replicas one after the other, and kill each at some moment: python -m tests.commands.killed_replicas DIR COUNT

Each is a fork with an engine that starts nothing; it has a socket, installs a bundle on the node, and then waits.
"""

from __future__ import annotations

import asyncio
import io
import os
import random
import secrets
import signal
import socket
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from orchestrator.config import EngineKind
from orchestrator.engine.contract import EngineSpec
from orchestrator.fleet.plan import ReplicaPlan
from orchestrator.fleet.replica import Replica
from orchestrator.graph_cache import bundle
from orchestrator.graph_cache.node_cache import NodeCopies
from orchestrator.graph_cache.settings import CacheSettings

LIMITS = bundle.Limits(1 << 24, 1000)
LONGEST_S = 0.3  # until a replica is killed; a start takes less, where nothing else runs


def payload() -> memoryview:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for number in range(300):
            info = tarfile.TarInfo(f"graphs/{number % 20}/{number}")
            info.size = 1000
            tar.addfile(info, io.BytesIO(secrets.token_bytes(1000)))
    return memoryview(buffer.getvalue())


def live(folder: Path, content: memoryview) -> None:
    """A replica's life, until it is killed."""
    scratch = folder / f"orchestrator-{secrets.token_hex(4)}" / "replica-0"
    spec = EngineSpec("replica-0", "m", {"fake_compile_s": 0.0}, {}, str(scratch), str(scratch / "cache"), 60.0)
    node = str(folder / "node")
    settings: Any = CacheSettings(None, "", str(folder / "key"), LIMITS, 1.0, 1.0, node, 1 << 20)
    replica = Replica(ReplicaPlan("replica-0", replace(spec, stock=True), EngineKind.fake, ({},), "PACK", 1), settings)
    listener = socket.socket(socket.AF_UNIX)
    os.chdir(scratch)  # a socket's path has 107 bytes at most
    listener.bind("socket")
    NodeCopies(node, 1 << 20).link(secrets.token_hex(8), scratch / "cache", lambda: content, LIMITS)
    asyncio.run(replica.start())
    (folder / "lived").touch()
    time.sleep(600.0)


def main(folder: Path, count: int) -> None:
    content, draw = payload(), random.Random(0)
    for number in range(count):
        if (pid := os.fork()) == 0:
            try:
                live(folder, content)
            finally:
                os._exit(1)
        while number == 0 and not (folder / "lived").exists():  # one is killed when all is there
            assert os.waitpid(pid, os.WNOHANG) == (0, 0), "it ended by itself"
            time.sleep(0.01)
        time.sleep(draw.uniform(0.0, LONGEST_S))
        os.kill(pid, signal.SIGKILL)
        assert os.waitpid(pid, 0)[1] == signal.SIGKILL, "it ended by itself"


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
