"""The zygote: imports a module, then forks a worker for whoever asks, until its raylet ends.

`python -m orchestrator.zygote.server LISTENING_FD SOCKET PRELOAD RAYLET_PID`. It runs one thread, so that a fork is
sound, and initialises no device. A fork is started as its client would have been: with the client's command,
environment, folder and standard streams, in a process group of its own.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.zygote import libraries
from orchestrator.zygote.client import FORKED, LENGTH, REFUSED, STATUS

# jemalloc's thread (Ray brings it) looks after forks itself. The CUDA driver has one as soon as it is loaded; whether
# the driver is initialised, engine/vllm/zygote_imports.py asks. Seen on an H200, driver 580: forks worked beside both.
_SAFE = ("jemalloc_bg_thd", "cuda")


@dataclass(frozen=True)
class Request:
    """What a client asks for; the streams are file descriptors."""

    command: list[str]
    environment: dict[str, str]
    folder: str
    streams: list[int]


class Zygote:
    """The loop that forks.

    Args:
        listener: where clients connect.
        path: the listener's file.
        raylet: process id of the raylet; the loop ends with it.
    """

    def __init__(self, listener: socket.socket, path: Path, raylet: int) -> None:
        self._listener, self._path = listener, path
        self._raylet = os.pidfd_open(raylet)
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ)
        self._selector.register(self._raylet, selectors.EVENT_READ)
        self._forks: dict[int, tuple[int, socket.socket]] = {}  # pidfd -> (pid, client)
        self._clients: dict[socket.socket, int] = {}  # client -> pid

    def serve(self) -> Request | None:
        """Returns in every fork, with what it is to run; and in the zygote, with None, once its raylet has ended or a
        client that needs room found it idle."""
        while self._listener.fileno() >= 0:
            for ready, _ in self._selector.select():
                source: Any = ready.fileobj
                if source is self._listener:
                    if (request := self._accept()) is not None:
                        return request
                elif source == self._raylet:
                    for left in (self._path, self._path.with_suffix(".lock")):
                        left.unlink(missing_ok=True)
                    return None
                elif isinstance(source, socket.socket):
                    self._heard(source)
                else:
                    self._ended(source)
        return None

    def _accept(self) -> Request | None:
        """Fork for a client; None in the zygote."""
        client, _ = self._listener.accept()
        try:
            client.settimeout(10.0)
            request = _received(client)
            if request is None or not request.command:
                if request is not None and not self._forks:
                    self._path.unlink(missing_ok=True)  # first: what listens there from now on is another one
                    self._selector.unregister(self._listener)
                    self._listener.close()
                client.close()
                return None
            client.settimeout(None)
            client.sendall(FORKED)
        except (OSError, ValueError):
            client.close()
            return None
        pid = os.fork()
        if pid == 0:
            self._close(client)
            return request
        for stream in request.streams:
            os.close(stream)
        pidfd = os.pidfd_open(pid)
        self._forks[pidfd], self._clients[client] = (pid, client), pid
        self._selector.register(pidfd, selectors.EVENT_READ)
        self._selector.register(client, selectors.EVENT_READ)
        return None

    def _close(self, client: socket.socket) -> None:
        """In a fork: it must not hold open what belongs to the zygote and its other clients."""
        self._selector.close()
        for open_socket in (client, self._listener, *self._clients):
            open_socket.close()
        for fd in (self._raylet, *self._forks):
            os.close(fd)

    def _heard(self, client: socket.socket) -> None:
        """A client passes a signal on; or it is gone, and its fork has to go."""
        with suppress(OSError):
            for number in client.recv(16) or [signal.SIGKILL]:
                with suppress(ProcessLookupError):
                    os.kill(self._clients[client], number)
                if number == signal.SIGKILL:
                    self._selector.unregister(client)

    def _ended(self, pidfd: int) -> None:
        pid, client = self._forks.pop(pidfd)
        _, status = os.waitpid(pid, 0)
        self._selector.unregister(pidfd)
        os.close(pidfd)
        with suppress(KeyError):
            self._selector.unregister(client)
        with suppress(OSError):
            client.sendall(STATUS.pack(status))
        self._clients.pop(client)
        client.close()


def run(request: Request, preload: Any) -> None:
    """In a fork: become what the client asked for."""
    # No session: Linux shares the CPU out by session (sched_autogroup), and a busy one can starve a replica's start.
    os.setpgid(0, 0)
    signal.set_wakeup_fd(-1)
    for target, stream in enumerate(request.streams):
        os.dup2(stream, target)
        os.close(stream)
    os.chdir(request.folder)
    os.environ.clear()
    os.environ.update(request.environment)
    script = request.command[0]
    paths = [path for path in request.environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:] = [str(Path(script).parent), *dict.fromkeys([*paths, *sys.path[1:]])]
    sys.argv = list(request.command)
    preload.at_birth()
    runpy.run_path(script, run_name="__main__")


def _received(client: socket.socket) -> Request | None:
    """A client's request, without a command if it only wants idle zygotes to end; None where nobody waits for it.

    Raises:
        ValueError: it is no request.
    """
    head, streams, _, _ = socket.recv_fds(client, LENGTH.size, 3)
    if len(head) < LENGTH.size:
        return None
    left, parts = LENGTH.unpack(head)[0], []
    if left == 0:
        return Request([], {}, "", list(streams))
    while left:
        part = client.recv(min(left, 1 << 16))
        if not part:
            return None
        parts.append(part)
        left -= len(part)
    said = json.loads(b"".join(parts))
    return Request(list(said["command"]), dict(said["environment"]), str(said["folder"]), list(streams))


def other_threads() -> list[str]:
    """The names of this process's threads, without its first one and those that do not mind a fork."""
    names = []
    for task in Path("/proc/self/task").iterdir():
        with suppress(OSError):  # it has just ended
            if int(task.name) != os.getpid() and not (name := (task / "comm").read_text().strip()).startswith(_SAFE):
                names.append(name)
    return names


def main() -> None:
    """Import, serve, and in a fork run.

    Raises:
        SystemExit: after the imports a fork would not be sound; later clients are told why.
    """
    fd, path, name, raylet = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    # Each would be a second thread: OpenBLAS's pool, and the one in which humming builds its kernels
    os.environ.update({"OPENBLAS_NUM_THREADS": "1", "HUMMING_DISABLE_PARALLEL_BUILD": "1"})
    gc.disable()  # nearly all of what imports make stays; looking for what does not takes a sixth of their time
    libraries.load_first()
    listener = socket.socket(fileno=fd)
    try:
        preload = importlib.import_module(name)
        if threads := other_threads():
            raise SystemExit(f"{name} has started threads ({', '.join(threads)}), and a fork would miss them")
    except SystemExit as refusal:
        path.with_suffix(REFUSED).write_text(str(refusal))  # or each later client would wait for the same
        raise
    zygote = Zygote(listener, path, raylet)
    gc.collect()
    gc.freeze()  # the garbage collector does not touch, and so does not copy, what forks share
    gc.enable()
    request = zygote.serve()
    if request is None:
        os._exit(0)  # at once: whoever ended the raylet looks for what is left
    run(request, preload)


if __name__ == "__main__":
    main()
