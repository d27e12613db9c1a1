"""Ray Serve's controller, asked with a deadline: Serve's own calls wait for ever where its node is gone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import ray
from ray import serve
from ray.util import placement_group_table

from orchestrator.errors import ServeError

T = TypeVar("T")
INGRESS = "ingress"  # a deployment of each application of ours
_PATIENCE_S = 60.0  # a controller that was killed is back, with its state, in a few seconds
_LOOK_S = 1.0
_HINT = "Ray's own account is in /tmp/ray/session_latest/logs/raylet.out."


def ask(call: Callable[[], T], seconds: float = _PATIENCE_S) -> T:
    """What `call` returns.

    Raises:
        ServeError: no node of the cluster is alive any more, or there is no answer after that many seconds.
    """
    answer: list[T] = []
    failed: list[Exception] = []

    def run() -> None:
        try:
            answer.append(call())
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    deadline = time.monotonic() + seconds
    while thread.is_alive():
        thread.join(_LOOK_S)
        if thread.is_alive() and not any(node["Alive"] for node in ray.nodes()):
            raise ServeError("The Ray cluster is lost: none of its nodes is alive.", hint=_HINT)
        if thread.is_alive() and time.monotonic() > deadline:
            raise ServeError(f"Ray Serve's controller does not answer; waited for {seconds:g} s.")
    if failed:
        raise failed[0]
    return answer[0]


def status(name: str, seconds: float = _PATIENCE_S) -> str:
    """An application's state, as Ray Serve calls it: DEPLOYING, RUNNING, ..., NOT_STARTED where there is none.

    Args:
        name: of the application.
        seconds: to wait for the answer.

    Raises:
        ServeError: see `ask`.
    """
    found = _application(name, seconds)
    return str(found.status.value) if found else "NOT_STARTED"


def deployments(name: str) -> dict[str, Any]:
    """An application's deployments, as `serve.status` has them.

    Raises:
        ServeError: see `ask`.
    """
    found = _application(name)
    return dict(found.deployments) if found else {}


def model_states(name: str) -> dict[str, int]:
    """How many replicas are in which state (STARTING, RUNNING, ...), where one model is served.

    Raises:
        ServeError: see `ask`.
    """
    (found,) = [d.replica_states for deployment, d in deployments(name).items() if deployment != INGRESS]
    return {str(state): n for state, n in found.items()}


def reason(name: str) -> str:
    """What the deployments say of themselves, in a line."""
    return " ".join(" ".join(d.message.split()) for d in deployments(name).values() if d.message)


def unplaced(name: str) -> list[dict[str, float]]:
    """The bundles of an application's replicas that no node has room for now.

    Raises:
        ServeError: see `ask`.
    """
    pending = [g for g in ask(placement_group_table).values() if g["state"] == "PENDING"]
    ours = [group for group in pending if group["name"].startswith(f"SERVE_REPLICA::{name}#")]
    return [dict(bundle) for group in ours for bundle in group["bundles"].values()]


def remove(name: str, seconds: float) -> bool:
    """Delete an application, and wait until its replicas have drained.

    `serve.delete` waits for 60 seconds, whatever the deployments' own deadlines are.

    Args:
        name: of the application.
        seconds: to wait.

    Returns:
        It is gone; False: another program has put its own in the place of ours, and that stays.

    Raises:
        ServeError: it is still there after that many seconds, or see `ask`.
    """
    if (found := deployments(name)) and INGRESS not in found:
        return False
    ask(lambda: serve.delete(name, _blocking=False))
    deadline = time.monotonic() + seconds
    while status(name) != "NOT_STARTED":
        if time.monotonic() > deadline:
            raise ServeError(f"The application {name} is not gone after {seconds:g} s.")
        time.sleep(_LOOK_S / 4)
    return True


def _application(name: str, seconds: float = _PATIENCE_S) -> Any:
    return ask(serve.status, seconds).applications.get(name)
