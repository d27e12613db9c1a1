"""An S3 server of our own, on loopback: moto's."""

from __future__ import annotations

import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

from tests.ray.ray_nodes import free_port
from tests.waiting import HANG_S, wait_for


@contextmanager
def running() -> Iterator[int]:
    """Yields its port."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: _answers(port) or server.poll() is not None)
        assert server.poll() is None
        yield port
    finally:
        server.terminate()
        server.wait(HANG_S)


def _answers(port: int) -> bool:
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=HANG_S).close()
    except OSError:
        return False
    return True
