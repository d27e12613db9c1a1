"""Where a service is reached. Ray Serve keeps the address that it was started with, and the applications of others."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray import serve
from ray.exceptions import ActorAlreadyExistsError, ActorDiedError

from orchestrator import compat
from orchestrator.compat import table
from orchestrator.config import AppConfig, ClusterKind
from orchestrator.errors import ConfigError
from orchestrator.progress import Say
from orchestrator.serve import controller
from orchestrator.serve.auth import read_keys

# Seconds in which a proxy has to start. With Ray Serve's own five, one on a busy machine is killed again and again.
PATIENCE, PATIENCE_S = "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "120"
_ALL = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}  # noqa: S104 - what is bound for everybody is reached from here, too


@dataclass(frozen=True)
class Front:
    """The HTTP side of a Ray Serve that runs.

    Attributes:
        host, port: as they are bound.
        root_path: that all paths have before them.
        routes: the applications that there are, and where each one is.
    """

    host: str
    port: int
    root_path: str
    routes: Mapping[str, str]

    def url(self, route: str) -> str:
        """Of an application, without a slash at its end."""
        host = _ALL.get(self.host, f"[{self.host}]" if ":" in self.host else self.host)
        return f"http://{host}:{self.port}{self.root_path}{route}".rstrip("/")


def running() -> Front | None:
    """The one of this cluster; None: no Ray Serve runs here.

    Raises:
        ServeError: its controller does not answer.
    """
    client = controller.ask(lambda: compat.get(table.SERVE_CLIENT)(raise_if_no_controller_running=False))
    if client is None:
        return None
    http = client.http_config
    details = controller.ask(client.get_serve_details)
    routes = {name: found.get("route_prefix") or "" for name, found in details["applications"].items()}
    listens = details.get("proxy_location") != "Disabled"  # without proxies there is an address all the same
    return Front((http.host or "") if listens else "", http.port, http.root_path, routes)


def claim(app: AppConfig, say: Say) -> Front:
    """Start Ray Serve at the address that is configured, or take the one that runs, with its own address.

    Raises:
        ConfigError: the address, the application's name or its route is another's, or keys are needed for it.
    """
    there = running()
    if there is None:
        if _on_head():  # where its proxy will be
            check_free(app.serve.host, app.serve.port)
        wanted: dict[str, Any] = {
            "proxy_location": app.serve.proxy_location.value,
            "http_options": {"host": app.serve.host, "port": app.serve.port},
        }
        if app.cluster.kind is not ClusterKind.local:  # whose Ray has our environment, and starts sooner without this
            wanted["controller_options"] = {
                "runtime_env": {"env_vars": {PATIENCE: os.environ.get(PATIENCE, PATIENCE_S)}}
            }
        try:
            serve.start(**wanted)
        except (ActorAlreadyExistsError, ActorDiedError, TimeoutError):
            # Another job began at the same moment: take what that one started. Or a proxy took longer than the five
            # seconds that Ray Serve gives the first: it has begun another, which has longer, and waits for it later.
            serve.start(**wanted)
        there = running() or Front(app.serve.host, app.serve.port, "", {})
    _check_guest(app, there)
    if (there.host, there.port) != (app.serve.host, app.serve.port):
        say("serve", f"Ray Serve runs here already, at {there.host}:{there.port}; it stays there")
    read_keys(app.serve.api_keys_file, there.host)
    return there


def check_free(host: str, port: int) -> None:
    """Is nobody listening there? Ray's proxies would share a port with others, and both would seem to be ready.

    Raises:
        ConfigError: somebody is, or this machine has no such address.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ConfigError(f"serve.host={host}: {error.strerror}.", where="serve.host") from error
    for family, kind, protocol, _, address in found:
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what ended a moment ago does not count
            try:
                probe.bind(address)
            except OSError as error:
                raise ConfigError(
                    f"serve.host={host} serve.port={port}: {error.strerror}.",
                    where="serve.port",
                    hint="Choose another port.",
                ) from error


def _on_head() -> bool:
    here = ray.get_runtime_context().get_node_id()
    return any(node["NodeID"] == here and "node:__internal_head__" in node["Resources"] for node in ray.nodes())


def _check_guest(app: AppConfig, there: Front) -> None:
    name, route = app.serve.name, app.serve.route_prefix
    if not there.host:
        raise ConfigError("Ray Serve runs on this cluster without HTTP.", where="serve.host")
    if name in there.routes:
        raise ConfigError(
            f"An application named {name} runs already.",
            where="serve.name",
            hint=f"Choose another serve.name. What is left of a job of yours ends by serve.delete({name!r}) in Python.",
        )
    if route in there.routes.values():
        owner = next(other for other, its in there.routes.items() if its == route)
        raise ConfigError(
            f"The application {owner} has the route {route}.",
            where="serve.route_prefix",
            hint=f"Choose another one, as serve.route_prefix=/{name}.",
        )
