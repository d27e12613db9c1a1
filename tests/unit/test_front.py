"""Where a service is reached, and what of a cluster's Ray Serve is left alone."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from ray.exceptions import ActorAlreadyExistsError, ActorDiedError

from orchestrator.config import AppConfig, sources
from orchestrator.errors import ConfigError
from orchestrator.serve import front
from orchestrator.serve.front import Front


def quiet(who: str, what: str) -> None:
    pass


@pytest.fixture
def app() -> AppConfig:
    return sources.composed(["model=tiny_llama", "serve.port=8000"])


@pytest.fixture
def taken() -> Iterator[socket.socket]:
    """A listener that shares its port with whoever asks for it, as Ray's proxies do."""
    with socket.socket() as listener:
        for option in (socket.SO_REUSEPORT, socket.SO_REUSEADDR):
            listener.setsockopt(socket.SOL_SOCKET, option, 1)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0"])
def test_a_port_that_somebody_listens_on_is_refused(taken: socket.socket, host: str) -> None:
    with pytest.raises(ConfigError, match="in use") as caught:
        front.check_free(host, taken.getsockname()[1])
    assert caught.value.where == "serve.port"


def test_a_free_port_passes_even_right_after_its_last_connection(taken: socket.socket) -> None:
    port = taken.getsockname()[1]
    with socket.create_connection(("127.0.0.1", port)):
        taken.accept()[0].close()
    taken.close()
    front.check_free("127.0.0.1", port)


@pytest.mark.parametrize(("host", "where"), [("no.such.host.invalid", "serve.host"), ("203.0.113.1", "serve.port")])
def test_an_address_that_this_machine_has_not_is_refused(host: str, where: str) -> None:
    with pytest.raises(ConfigError) as caught:
        front.check_free(host, 8000)
    assert caught.value.where == where


@pytest.mark.parametrize(
    ("there", "url"),
    [
        (Front("127.0.0.1", 8000, "", {}), "http://127.0.0.1:8000/mine"),
        (Front("0.0.0.0", 80, "", {}), "http://127.0.0.1:80/mine"),
        (Front("::", 80, "/serve", {}), "http://[::1]:80/serve/mine"),
        (Front("fd00::1", 80, "", {}), "http://[fd00::1]:80/mine"),
        (Front("head.example", 80, "", {}), "http://head.example:80/mine"),
    ],
)
def test_the_url_is_one_that_can_be_asked(there: Front, url: str) -> None:
    assert there.url("/mine") == url
    assert there.url("/") == url.removesuffix("/mine")


def claimed(monkeypatch: pytest.MonkeyPatch, app: AppConfig, there: Front) -> Front:
    monkeypatch.setattr(front, "running", lambda: there)
    return front.claim(app, quiet)


def test_a_ray_serve_that_runs_keeps_its_address(monkeypatch: pytest.MonkeyPatch, app: AppConfig) -> None:
    there = Front("127.0.0.1", 9999, "", {"other": "/other"})
    assert claimed(monkeypatch, app, there) is there


@pytest.mark.parametrize(
    ("routes", "where"),
    [
        ({"orchestrator": "/elsewhere"}, "serve.name"),
        ({"theirs": "/"}, "serve.route_prefix"),
        ({"orchestrator": "/"}, "serve.name"),
    ],
)
def test_names_and_routes_of_others_are_left_alone(
    monkeypatch: pytest.MonkeyPatch, app: AppConfig, routes: dict[str, str], where: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        claimed(monkeypatch, app, Front("127.0.0.1", 8000, "", routes))
    assert caught.value.where == where


def test_a_route_of_ones_own_beside_theirs(monkeypatch: pytest.MonkeyPatch, app: AppConfig) -> None:
    app.serve.name, app.serve.route_prefix = "mine", "/mine"
    there = Front("127.0.0.1", 8000, "", {"theirs": "/"})
    assert claimed(monkeypatch, app, there).url(app.serve.route_prefix) == "http://127.0.0.1:8000/mine"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.7"])
def test_keys_are_demanded_for_the_address_that_is_bound(
    monkeypatch: pytest.MonkeyPatch, app: AppConfig, host: str
) -> None:
    assert app.serve.host == "127.0.0.1"
    with pytest.raises(ConfigError, match="no API keys"):
        claimed(monkeypatch, app, Front(host, 8000, "", {}))


@pytest.mark.parametrize(
    "failed",
    [ActorAlreadyExistsError("SERVE_CONTROLLER_ACTOR"), ActorDiedError(), TimeoutError("HTTP proxies not available")],
    ids=["another job's", "its first proxy was slow and killed", "its proxies are slow"],
)
def test_a_ray_serve_that_starts_at_that_moment_is_taken(
    monkeypatch: pytest.MonkeyPatch, app: AppConfig, failed: Exception
) -> None:
    there = Front("127.0.0.1", 9999, "", {})
    started: list[dict] = []

    def start(**wanted: object) -> None:
        started.append(wanted)
        if len(started) == 1:
            raise failed

    monkeypatch.setattr(front, "running", lambda: there if len(started) == 2 else None)
    monkeypatch.setattr(front, "_on_head", lambda: False)
    monkeypatch.setattr(front.serve, "start", start)
    assert front.claim(app, quiet) is there


def test_a_ray_serve_without_http_is_refused(monkeypatch: pytest.MonkeyPatch, app: AppConfig) -> None:
    with pytest.raises(ConfigError, match="without HTTP"):
        claimed(monkeypatch, app, Front("", 8000, "", {}))


@pytest.mark.parametrize("prefix", ["mine", "/mine/", ""])
def test_a_route_has_one_slash_before_it(prefix: str) -> None:
    with pytest.raises(ConfigError) as caught:
        sources.composed(["model=tiny_llama", f"serve.route_prefix='{prefix}'"])
    assert caught.value.where == "serve.route_prefix"
