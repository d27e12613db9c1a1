"""Start a local Ray on a machine of any speed.

Ray's raylet waits 15 s for the ports that its agents choose, and aborts after that (Ray issue 65983). On a slow or busy
machine the agents' imports alone take longer. Nobody waits for ports that are given, so we give them.
"""

from __future__ import annotations

import os
import pwd
import random
import re
import secrets
import shlex
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import ray

from orchestrator import compat, paths
from orchestrator.cluster import machine
from orchestrator.compat import features, table
from orchestrator.errors import ClusterError
from orchestrator.progress import Say

AGENT_PORTS = table.PORTS
_FLAG = "--dashboard_agent_listen_port"  # raylet's
_RANGE = range(20_000, 32_000)  # below the ports that Linux gives to outgoing connections, and above Ray's workers'
# Ray's own limits on a slow start, in its own units; what the user has set stands.
PATIENCE = {"RAY_agent_register_timeout_ms": "600000", "RAY_gcs_server_port_wait_time_s": "300"}
_ATTEMPTS = 2
_LONG_S = 10.0
_SHORT = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108 - the first is Ray's own choice
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
    if ray.is_initialized():
        raise ClusterError("This process is connected to a Ray already.", hint="Call ray.shutdown() first.")
    for name, value in PATIENCE.items():
        os.environ.setdefault(name, value)
    _identify()
    if unfit := _unfit(_base()):
        os.environ["RAY_TMPDIR"] = next(p for p in _SHORT if os.access(p, os.W_OK | os.X_OK))
        say("cluster", f"{unfit}; Ray's are in {_sessions()}")
    if (free := machine.shared_memory()) < arguments.get("object_store_memory", 0):
        slow = f"Ray's object store is a slower one, in {_base()}; in a container, --shm-size gives more"
        say("cluster", f"{free >> 20} MiB of shared memory are free: {slow}")
    if (python := shlex.quote(sys.executable)) != sys.executable:  # Ray gives it to a shell as it is
        arguments["runtime_env"] = {"py_executable": python}
    for attempt in range(1, _ATTEMPTS + 1):
        before = {child.pid for child in psutil.Process().children(recursive=True)}
        began = time.time()
        say("cluster", "starting Ray" + (", once more" if attempt > 1 else ""))
        try:
            with _given(agent_ports()), _told_later(say):
                ray.init(address="local", **arguments)
        except (TypeError, ValueError):
            raise  # wrong arguments stay wrong
        except Exception as error:
            cause = f"{' '.join(str(error).split())} {log_says(began)}".strip()
            ray.shutdown()
            end_children(before, patience_s=0.0)
            if attempt == _ATTEMPTS:
                hint = f"Its logs are in {_sessions()}/session_latest/logs."
                raise ClusterError(f"Ray did not start: {cause}", hint=hint) from error
            say("cluster", f"Ray did not start: {cause}")
        else:
            return


@contextmanager
def _told_later(say: Say) -> Iterator[None]:
    """Whoever waits for long is told for what."""
    later = threading.Timer(
        _LONG_S, say, ("cluster", "waiting for Ray's raylet and agents: a busy machine takes minutes")
    )
    later.daemon = True
    later.start()
    try:
        yield
    finally:
        later.cancel()


def agent_ports() -> dict[str, int]:
    """Ports for a node's agents, which need not choose them then: Ray's parameter -> port."""
    return dict(zip(AGENT_PORTS, free_ports(len(AGENT_PORTS)), strict=True))


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


def log_says(began: float) -> str:
    """The gravest line in the logs of the Ray session that this process began since then; "" where there is none.

    Args:
        began: seconds since the epoch.
    """
    sessions = [p for p in _sessions().glob(f"session_*_{os.getpid()}") if p.stat().st_mtime >= began]
    sessions.sort(key=lambda folder: folder.stat().st_mtime)
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
def _given(ports: dict[str, int]) -> Iterator[None]:
    """Ports for the agents of the Ray that starts meanwhile; `ray.init` has no arguments for them."""
    if not compat.on(features.RAY_PORTS):
        yield  # another Ray: as it does by itself
        return

    def with_ports(plain: Any) -> Any:
        class WithPorts(plain):  # type: ignore[misc]
            def __init__(self, *words: Any, **named: Any) -> None:
                super().__init__(*words, **{**named, **ports})

        return WithPorts

    with compat.replaced(table.RAY_PARAMS, with_ports), told_raylets():
        yield


@contextmanager
def told_raylets() -> Iterator[None]:
    """Raylets that this process starts meanwhile are told the port that their agent was given to listen on.

    Ray tells them the agents' other ports, and keeps this one from them: they would wait for it all the same.
    """
    if not compat.on(features.RAY_PORTS):
        yield
        return
    raylet = compat.get(table.RAYLET)

    def telling(plain: Any) -> Any:
        def start_process(command: list[str], kind: str, *words: Any, **named: Any) -> Any:
            if kind == raylet and not any(_FLAG in word for word in command):
                port = re.search(r"--listen-port=(\d+)", " ".join(command))
                command = [*command, f"{_FLAG}={port[1]}"] if port else command
            return plain(command, kind, *words, **named)

        return start_process

    with compat.replaced(table.RAY_PROCESS, telling):
        yield


def end_children(before: set[int], patience_s: float) -> None:
    """Let Ray's processes end by themselves for a while, then kill what is left of them.

    Args:
        before: process ids of children that are not Ray's.
        patience_s: seconds.
    """
    left = [child for child in psutil.Process().children(recursive=True) if child.pid not in before]
    _, alive = psutil.wait_procs(left, timeout=patience_s)
    session = re.compile(rf"session_\S+_{os.getpid()}\b")
    for child in alive:
        with suppress(psutil.Error):
            if session.search(" ".join(child.cmdline())) or child.name().startswith("ray::"):
                child.kill()
    psutil.wait_procs(alive, timeout=patience_s)


def _identify() -> None:
    """In a container a user may have no name, no home, or one that is read-only; Ray, torch and vLLM ask for them.

    Raises:
        ConfigError: there is no home, and no ORCHESTRATOR_HOME either.
    """
    try:
        home = pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        os.environ.setdefault("USER", f"uid-{os.getuid()}")
        home = ""
    if not os.environ.get("HOME"):
        os.environ["HOME"] = home or paths.home()
    token = Path(os.environ["HOME"], ".ray", "auth_token")  # Ray makes one there
    place = next(p for p in token.parents if p.exists())
    if not token.exists() and not os.access(place, os.W_OK) and "RAY_AUTH_TOKEN_PATH" not in os.environ:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def _base() -> str:
    """Where Ray would put its sessions."""
    return os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or _SHORT[0]


def _unfit(base: str) -> str:
    """Why Ray could not work there; "" if it could. It keeps sockets there, and splits commands at spaces."""
    session = f"{base}/ray/session_2026-01-01_00-00-00_000000_{os.getpid()}/sockets/plasma_store"
    if len(os.fsencode(session)) > paths.SOCKET:
        return f"TMPDIR is too long for Ray's sockets ({base})"
    return f"Ray takes no folder with spaces ({base})" if base.split() != [base] else ""


def _sessions() -> Path:
    """Where Ray keeps its sessions."""
    return Path(_base()) / "ray"
