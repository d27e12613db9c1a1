"""`jobs/serve.py`: deploy, tell how far it is, serve until Ctrl-C, drain, stop."""

from __future__ import annotations

import json
import math
import os
import secrets
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError

from orchestrator.cluster import connect
from orchestrator.cluster.shape import local_shape
from orchestrator.config import AppConfig, ClusterKind
from orchestrator.errors import ConfigError, PlacementError, ServeError
from orchestrator.fleet import node_models
from orchestrator.graph_cache.settings import cache_settings
from orchestrator.progress import Say
from orchestrator.serve import app as application
from orchestrator.serve import controller, front
from orchestrator.serve.status_board import Board
from orchestrator.weights import arrival
from orchestrator.weights.settings import Weights

_POLL_S = 0.5
_BOARD_S = 60.0  # an actor that may have to start first
_MARGIN_S = 30.0  # for what ends after its deadline


@dataclass(frozen=True)
class Service:
    """A service that is ready.

    Attributes:
        address: its URL.
        models: the names that it answers to.
        ready_s: seconds from the deployment to readiness.
    """

    address: str
    models: tuple[str, ...]
    ready_s: float


@contextmanager
def serving(app: AppConfig, say: Say) -> Iterator[Service]:
    """Deploy, and yield once it is ready; at the end accepted requests are finished first, for `serve.drain_s` at most.

    Raises:
        OrchestratorError: the configuration is not right, or the application did not come up.
    """
    connect.check_asked(app.cluster)
    if app.cluster.kind is ClusterKind.local:
        application.check_room(app, local_shape(app.cluster))  # another cluster may grow: there the deadline tells
        front.check_free(app.serve.host, app.serve.port)
        os.environ.setdefault("SERVE_SOCKET_REUSE_PORT_ENABLED", "0")  # of two that start at once, one fails
        os.environ.setdefault(front.PATIENCE, front.PATIENCE_S)
    prepared = application.prepare(app, say)
    folders = prepared.folders
    with _ray_serve(app, say, prepared.weights.values()) as (app, url):
        made = application.build(app, folders, _foreseen(app, folders), prepared.weights)
        if app.fast_cold_start and app.cold_start.share_graphs:
            cache_settings(app)  # the registry, before the first replica asks for it
        try:
            ready_s = _deploy(app, made, say)
            yield Service(url, tuple(folders), ready_s)
        finally:
            say("serve", f"draining, for {app.serve.drain_s:g} s at most")
            if not controller.remove(app.serve.name, app.serve.drain_s + application.FRONT_S + _MARGIN_S):
                say("serve", f"another job has replaced the application {app.serve.name}; it stays")
            if app.cluster.kind is ClusterKind.local:
                controller.ask(serve.shutdown)


@contextmanager
def _ray_serve(app: AppConfig, say: Say, weights: Iterable[Weights]) -> Iterator[tuple[AppConfig, str]]:
    """Ray, and Ray Serve in it; yields the configuration with the address that is really bound, and the URL."""
    with connect.connected(app.cluster, say) as shape:
        node_models.make_everywhere(application.cells(app), shape)
        for one in weights:
            arrival.begin_here(one, shape)
        with _alone(app):
            there = front.claim(app, say)
            app = deepcopy(app)
            app.serve.host, app.serve.port = there.host, there.port
            yield app, there.url(app.serve.route_prefix)


@contextmanager
def _alone(app: AppConfig) -> Iterator[None]:
    """No other job of ours takes our name or route between our look at Ray Serve and our deployment.

    Raises:
        ConfigError: one is about to.
    """
    board, who = Board.connect(app.cluster.namespace), secrets.token_hex(8)
    places = [f"name {app.serve.name}", f"route {app.serve.route_prefix}"]
    if not ray.get(board.claim.remote(places, who), timeout=_BOARD_S):
        raise ConfigError(
            f"Another job is about to serve under the name {app.serve.name}, or on the route {app.serve.route_prefix}.",
            where="serve.name",
            hint="Choose another serve.name and serve.route_prefix.",
        )
    try:
        yield
    finally:
        with suppress(RayError):  # a cluster that is gone has no claims; Ray may not end while a call is on its way
            ray.get(board.give_up.remote(who), timeout=_BOARD_S)


def _foreseen(app: AppConfig, folders: dict[str, str]) -> dict[str, float]:
    """How long starts take, for models of which the cluster knows that."""
    board = Board.connect(app.cluster.namespace)
    found: dict[str, float] = {}
    for cell in application.cells(app):
        name = cell.model.name
        with suppress(RayError):  # the board is being restarted
            expected = ray.get(board.expected.remote(name, application.size(cell, folders[name])), timeout=_BOARD_S)
            found |= {name: expected["seconds"]} if expected else {}
    return found


def execute(app: AppConfig, say: Say) -> dict[str, Any]:
    """Serve until interrupted.

    Raises:
        OrchestratorError: the configuration is not right, or the application did not come up, or failed.
    """
    began = time.time()
    with serving(app, say) as service, suppress(KeyboardInterrupt):  # one more, while it drains, ends the job
        _greet(app, service, say)
        _until_interrupted(app.serve.name)
    return {"ok": True, "ready_s": round(service.ready_s, 2), "seconds": round(time.time() - began, 2)}


def _deploy(app: AppConfig, made: Any, say: Say) -> float:
    """Seconds until the application was ready."""
    began, failed = time.monotonic(), []

    def deploy() -> None:
        try:
            serve.run(made, name=app.serve.name, route_prefix=app.serve.route_prefix)
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=deploy, daemon=True)
    thread.start()
    placed = time.monotonic()
    while thread.is_alive():
        thread.join(_POLL_S)
        unplaced = controller.unplaced(app.serve.name)
        placed = placed if unplaced else time.monotonic()
        if time.monotonic() - placed > app.cluster.placement_timeout_s:
            raise PlacementError(
                f"No node had room for {' and '.join(map(str, unplaced))} within "
                f"cluster.placement_timeout_s={app.cluster.placement_timeout_s:g}."
            )
        for name, deployment in controller.deployments(app.serve.name).items():
            states = " ".join(f"{state.lower()} {n}" for state, n in deployment.replica_states.items() if n)
            say(name, states or deployment.status.lower())
    if failed:
        detail = " ".join(str(failed[0]).split())
        raise ServeError(f"The application did not come up: {controller.reason(app.serve.name) or detail}"[:1000])
    return time.monotonic() - began


def _greet(app: AppConfig, service: Service, say: Say) -> None:
    address, names = service.address, service.models
    key = " -H 'Authorization: Bearer KEY'" if app.serve.api_keys_file else ""
    body = json.dumps({"model": names[0], "prompt": "The capital of France is", "max_tokens": 8})
    say("serve", f"ready after {service.ready_s:.1f} s; Ctrl-C drains and stops")
    lines = [
        f"models  {', '.join(names)}",
        f"API     {address}/v1",
        f"status  {address}/status",
        f"metrics http://127.0.0.1:{ray.nodes()[0]['MetricsExportPort']}/metrics",
        f"try     curl {address}/v1/completions{key} -H 'Content-Type: application/json' -d '{body}'",
    ]
    print("\n".join(lines), file=sys.stderr, flush=True)


def _until_interrupted(name: str) -> None:
    while True:
        time.sleep(1.0)
        # a controller that is slow to answer is no reason to end a service that works
        if controller.status(name, math.inf) in ("DEPLOY_FAILED", "NOT_STARTED"):
            raise ServeError(f"The application failed: {controller.reason(name)}"[:1000])
