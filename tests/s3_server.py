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


def uri(port: int, where: str) -> str:
    """A bucket and what is below it, on the server that has this port; the bucket is made where it is not there."""
    query = f"scheme=http&endpoint_override=127.0.0.1%3A{port}&allow_bucket_creation=true&region=us-east-1"
    return f"s3://access:secret@{where}?{query}"


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
