"""Ray nodes as tests start them: with ports of their own, and patience (see orchestrator/cluster/ray_start.py)."""

from __future__ import annotations

import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from orchestrator.cluster import ray_start
from tests.waiting import HANG_S

RAY = str(Path(sys.executable).with_name("ray"))
START = [sys.executable, str(Path(__file__).with_name("ray_command.py")), "start"]  # as `ray start`
_FLAGS = {"metrics_agent_port": "dashboard-agent-grpc-port"}  # where it is not the parameter's own name


def free_port() -> int:
    """A port that nothing listens on now."""
    return ray_start.free_ports(1)[0]


def listens(port: int) -> bool:
    """Does somebody take connections there?"""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def end(*raylets: subprocess.Popen[Any]) -> None:
    """Kill what `ray start --block` started, with all that it started."""
    tops = [psutil.Process(raylet.pid) for raylet in raylets]
    family = [process for top in tops for process in (top, *top.children(recursive=True))]
    for process in family:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(family, timeout=HANG_S)


def agents() -> dict[str, int]:
    """For `Cluster` and its `add_node`: ports that a node's agents need not choose."""
    return ray_start.agent_ports()


def flags(*, head: bool = False) -> list[str]:
    """The same for `ray start`; a head's client server and all workers have ports of their own as well."""
    found = [f"--{_FLAGS.get(name, name.replace('_', '-'))}={port}" for name, port in agents().items()]
    found += ["--min-worker-port=0", "--max-worker-port=0"]
    return found + ([f"--ray-client-server-port={free_port()}"] if head else [])


def patience() -> dict[str, str]:
    """Environment variables for `ray start`."""
    return dict(ray_start.PATIENCE)
