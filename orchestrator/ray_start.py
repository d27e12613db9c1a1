"""Start a local Ray on a machine of any speed.

Ray's raylet waits 15 s for the ports that its agents choose, and aborts after that (Ray issue 65983). On a slow or busy
machine the agents' imports alone take longer. Nobody waits for ports that are given, so we give them.
"""

from __future__ import annotations

import inspect
import os
import random
import socket
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import psutil
import ray

from orchestrator.errors import ClusterError
from orchestrator.progress import Say

AGENT_PORTS = (
    "metrics_agent_port",
    "metrics_export_port",
    "dashboard_agent_listen_port",
    "runtime_env_agent_port",
)
_RANGE = range(20_000, 32_000)  # below the ports that Linux gives to outgoing connections, and above Ray's workers'
# Ray's own limits on a slow start, in its own units; what the user has set stands.
_PATIENCE = {"RAY_agent_register_timeout_ms": "600000", "RAY_gcs_server_port_wait_time_s": "300"}
_ATTEMPTS = 2
_LOGS = ("raylet.err", "raylet.out", "gcs_server.err", "gcs_server.out", "dashboard_agent.log", "runtime_env_agent.log")
_GRAVE = (" C ", " F ", "Check failed", "Error:", "error:", " E ")


def start(say: Say, **arguments: Any) -> None:
    """`ray.init(address="local", ...)`, once more if it fails: then files are cached, and the ports are other ones.

    Args:
        say: told what is waited for.
        arguments: for `ray.init`.

    Raises:
        ClusterError: Ray did not start; the message has the cause from Ray's own log.
    """
    for name, value in _PATIENCE.items():
        os.environ.setdefault(name, value)
    for attempt in range(1, _ATTEMPTS + 1):
        before = {child.pid for child in psutil.Process().children(recursive=True)}
        say("cluster", "starting Ray" + (", once more" if attempt > 1 else ""))
        try:
            with _given(free_ports(len(AGENT_PORTS))):
                ray.init(address="local", **arguments)
        except Exception as error:
            cause = log_says(os.getpid()) or " ".join(str(error).split())
            ray.shutdown()
            _kill_new(before)
            if attempt == _ATTEMPTS:
                raise ClusterError(
                    f"Ray did not start: {cause}",
                    hint="See session_latest/logs in Ray's temporary folder (RAY_TMPDIR, else /tmp/ray).",
                ) from error
            say("cluster", f"Ray did not start: {cause}")
        else:
            return


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nothing listens on now, each another one."""
    found: list[int] = []
    with ExitStack() as held:
        for port in random.SystemRandom().sample(_RANGE, len(_RANGE)):
            probe = held.enter_context(closing(socket.socket()))
            try:
                probe.bind(("", port))
            except OSError:
                continue
            found.append(port)
            if len(found) == count:
                return found
    raise ClusterError(f"No {count} free ports between {_RANGE.start} and {_RANGE.stop}.")


def log_says(pid: int) -> str:
    """The gravest line in the logs of the newest Ray session that a process began; "" where there is none."""
    root = Path(os.environ.get("RAY_TMPDIR", tempfile.gettempdir())) / "ray"
    sessions = sorted(root.glob(f"session_*_{pid}"), key=lambda folder: folder.stat().st_mtime)
    if not sessions:
        return ""
    for mark in _GRAVE:
        for name in _LOGS:
            log = sessions[-1] / "logs" / name
            lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
            found = [line for line in lines if mark in line]
            if found:
                return f"{name}: {' '.join(found[-1].split())[:400]}"
    return ""


@contextmanager
def _given(ports: list[int]) -> Iterator[None]:
    """Ports for the agents of the Ray that starts meanwhile; `ray.init` has no arguments for them."""
    parameter = ray._private.parameter
    if not set(AGENT_PORTS) <= set(inspect.signature(parameter.RayParams).parameters):
        yield  # another Ray: as it does by itself
        return

    class WithPorts(parameter.RayParams):  # type: ignore[misc,name-defined]
        def __init__(self, *words: Any, **named: Any) -> None:
            super().__init__(*words, **{**named, **dict(zip(AGENT_PORTS, ports, strict=True))})

    plain, parameter.RayParams = parameter.RayParams, WithPorts
    try:
        yield
    finally:
        parameter.RayParams = plain


def _kill_new(before: set[int]) -> None:
    """What a start that failed has left running."""
    left = [child for child in psutil.Process().children(recursive=True) if child.pid not in before]
    for child in left:
        try:
            child.kill()
        except psutil.Error:
            continue
    psutil.wait_procs(left, timeout=5.0)
