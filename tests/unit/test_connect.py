"""What is asked of a cluster that cannot be: one line, before anything starts and in no time."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import ray

from orchestrator.cluster import connect
from orchestrator.config import ClusterConfig, ClusterKind
from orchestrator.errors import ConfigError
from orchestrator.runs import run

HTTP = "http://127.0.0.1:8265"


@pytest.fixture(autouse=True)
def outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", connect._RAY_JOB):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("Ray was asked"))


@pytest.mark.parametrize(
    ("address", "variable", "said"),
    [
        (None, HTTP, "RAY_ADDRESS"),
        (HTTP, None, "cluster.address"),
        (HTTP, "auto", "cluster.address"),
        ("https://head:443", None, "cluster.address"),
        (None, "local", "cluster"),
    ],
)
def test_an_address_of_another_kind(address: str | None, variable: str | None, said: str, monkeypatch) -> None:
    if variable:
        monkeypatch.setenv("RAY_ADDRESS", variable)
    with pytest.raises(ConfigError) as caught:
        connect.check_asked(ClusterConfig(kind=ClusterKind.existing, address=address))
    assert caught.value.where == said
    assert caught.value.hint


def test_a_submitted_job_that_forgot_its_cluster(make_app, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(connect._RAY_JOB, "{}")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    monkeypatch.setattr(run.models, "resolve", lambda *_: pytest.fail("a model was made"))
    with pytest.raises(ConfigError, match="Set cluster=existing"), run.session(make_app(), lambda who, what: None):
        pass
    connect.check_asked(ClusterConfig(kind=ClusterKind.existing))


def refused(address: str) -> str:
    cluster = ClusterConfig(kind=ClusterKind.existing, address=address)
    with pytest.raises(ConfigError) as caught, connect.connected(cluster):
        pass
    return str(caught.value)


class Page(BaseHTTPRequestHandler):
    """As Ray's dashboard answers a browser."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def dashboard() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


def test_the_dashboards_port_is_not_the_clusters(dashboard: str) -> None:
    assert f"No Ray cluster at {dashboard}: a web server answers there" in refused(dashboard)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "[::1]:1", "no.such.host.invalid:6379"])
def test_nothing_listens(address: str) -> None:
    assert f"No Ray cluster at {address}" in refused(address)


def test_a_server_that_is_no_web_server_is_for_ray_to_ask() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            client, _ = server.accept()
            with client:
                client.sendall(b"\0\0\0\4\0\0\0\0\0")  # as gRPC begins

        threading.Thread(target=answer, daemon=True).start()
        connect._reach(f"127.0.0.1:{server.getsockname()[1]}")


def test_what_ray_says_of_a_cluster_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: object) -> None:
        raise RuntimeError("Version mismatch:\n  the cluster has Ray 2.9,\n  this process Ray 2.60")

    monkeypatch.setattr(ray, "init", init)
    assert "Version mismatch: the cluster has Ray 2.9, this process" in refused("auto")
