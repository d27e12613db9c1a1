"""Become a fork of the node's zygote: `python -S client.py PRELOAD WORKER_SCRIPT ARGUMENTS...`.

Runs before every worker, so it needs nothing but the standard library.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]
_READY_S = 180.0  # for the zygote's imports on a slow disk
_ANSWER_S = 10.0  # for one that forks right now
_MOST = 4  # zygotes of one raylet: each holds half a gigabyte
# Libraries read these once, when they are loaded or imported, which the zygote has done for all its forks...
_AT_IMPORT = (
    "ATEN_", "CUDA_", "DNNL_", "FLASHINFER_", "FLA_", "GLIBC_", "GOMP_", "HF_", "HOME", "KMP_", "LANG", "LC_", "LD_",
    "MALLOC_", "MKL_", "NCCL_", "OMP_", "ONEDNN_", "PYTHON", "PYTORCH_", "TMPDIR", "TOKENIZERS_", "TORCH",
    "TRANSFORMERS_", "TRITON_", "TZ", "VLLM_", "XDG_",
)  # fmt: skip
# ... but for these: Ray tells each worker its devices and threads, vLLM its cores, and a start of ours what is offline.
_PER_WORKER = {
    "CUDA_VISIBLE_DEVICES", "GOMP_CPU_AFFINITY", "HF_HUB_OFFLINE", "OMP_NUM_THREADS", "TRANSFORMERS_OFFLINE",
}  # fmt: skip
FORKED = b"+"
REFUSED = ".refused"  # a zygote of this address has said why it cannot be one
STATUS = struct.Struct("!i")  # what waitpid says of the fork
LENGTH = struct.Struct("!q")


def main() -> None:
    """Be forked, or become an ordinary Python."""
    preload, *command = sys.argv[1:]
    try:
        connection = _forked(preload, command)
    except OSError as error:
        print(f"zygote: {error}; starting without it", file=sys.stderr)
        connection = None
    if connection is None:
        os.execv(sys.executable, [sys.executable, *command])  # noqa: S606
    _stand_in(connection)


def address(preload: str, raylet: int) -> Path:
    """Where a zygote listens: one for each user, raylet, job, interpreter, version of our code, preload module, and
    environment as far as libraries read it at import. Ray's library is one of these: it reads the job's id so, and a
    worker with another job's would never get a task.

    Raises:
        PermissionError: the folder belongs to another user, who could pose as our zygote.
    """
    folder = Path(tempfile.gettempdir()) / f"orchestrator-zygote-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    owner = folder.lstat()
    if owner.st_uid != os.getuid() or owner.st_mode & 0o077:
        raise PermissionError(f"{folder} is not ours alone; remove it")
    newest = max(file.stat().st_mtime_ns for file in _PACKAGE.rglob("*.py"))
    with suppress(OSError):  # when the raylet started, for its process id comes again
        preload += Path(f"/proc/{raylet}/stat").read_text().rpartition(")")[2].split()[19]
    read = {n: v for n, v in os.environ.items() if n.startswith(_AT_IMPORT) and n not in _PER_WORKER}
    job = os.environ.get("RAY_JOB_ID", "")
    facts = [preload, sys.executable, str(_PACKAGE), newest, job, sorted(read.items())]
    return folder / f"{raylet}-{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]}.sock"


def _forked(preload: str, command: list[str]) -> socket.socket | None:
    raylet = int(os.environ.get("RAY_RAYLET_PID") or 0)
    if not raylet:
        return None
    connection = _connect(address(preload, raylet), preload, raylet)
    connection.settimeout(_READY_S)
    request = json.dumps({"command": command, "environment": dict(os.environ), "folder": os.getcwd()}).encode()
    with suppress(OSError):
        socket.send_fds(connection, [LENGTH.pack(len(request))], [0, 1, 2])
        connection.sendall(request)
        if connection.recv(1) == FORKED:
            connection.settimeout(None)
            return connection
    connection.close()  # a zygote that comes to it later sees that nobody waits
    return None


def _connect(path: Path, preload: str, raylet: int) -> socket.socket:
    """A connection to the zygote, which is started if there is none.

    Raises:
        OSError: there can be none, for the reason that it says.
    """
    with suppress(FileNotFoundError):
        raise OSError(path.with_suffix(REFUSED).read_text())
    connection = socket.socket(socket.AF_UNIX)
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    short = f"/proc/self/fd/{folder}/{path.name}"  # a socket's path has 107 bytes at most, and TMPDIR may be longer
    try:
        with suppress(OSError):
            connection.connect(short)
            return connection
        with path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with suppress(OSError):  # another client was faster
                connection.connect(short)
                return connection
            if _others(folder, path) >= _MOST:
                _others(folder, path, end_idle=True)  # of jobs that are over, most likely
            if _others(folder, path) >= _MOST:
                raise OSError(f"the node has {_MOST} zygotes already, for other environments and jobs")
            path.unlink(missing_ok=True)
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(short)
                listener.listen(128)
                _start(listener, path, preload, raylet)
            connection.connect(short)  # it answers once it has imported everything
    finally:
        os.close(folder)
    return connection


def _others(folder: int, path: Path, *, end_idle: bool = False) -> int:
    """How many zygotes of the same raylet listen in the folder; whatever else is there was left behind.

    Args:
        folder: where they are, open.
        path: its own socket's.
        end_idle: those that have no forks are to end.
    """
    found = 0
    for other in path.parent.glob(f"{path.name.partition('-')[0]}-*.sock"):
        with socket.socket(socket.AF_UNIX) as probe:
            probe.setblocking(False)
            answer = probe.connect_ex(f"/proc/self/fd/{folder}/{other.name}")
            found += answer in (0, errno.EAGAIN)  # or its queue is full
            if end_idle and answer == 0:
                probe.settimeout(_ANSWER_S)
                with suppress(OSError):
                    probe.sendall(LENGTH.pack(0))
                    probe.recv(1)  # it has hung up: it does not listen any more, or has forks
    return found


def _start(listener: socket.socket, path: Path, preload: str, raylet: int) -> None:
    paths = [str(_PACKAGE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    facts = [str(listener.fileno()), str(path), preload, str(raylet)]
    command = [sys.executable, "-m", "orchestrator.zygote.server", *facts]
    subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        pass_fds=[listener.fileno()],
        stdin=subprocess.DEVNULL,
        process_group=0,
    )


def _stand_in(connection: socket.socket) -> None:
    """End as the fork ends, and pass signals on to it. If this process is killed, the zygote kills the fork."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda signum, _: connection.sendall(bytes([signum])))
    answer = connection.recv(STATUS.size)
    if len(answer) < STATUS.size:  # the zygote is gone, and its forks live on: ours is Ray's to end
        os._exit(0)
    code = os.waitstatus_to_exitcode(STATUS.unpack(answer)[0])
    if code < 0:
        signal.signal(-code, signal.SIG_DFL) if -code not in (signal.SIGKILL, signal.SIGSTOP) else None
        os.kill(os.getpid(), -code)
    os._exit(code)


if __name__ == "__main__":
    main()
