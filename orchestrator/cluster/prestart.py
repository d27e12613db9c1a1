"""Have a Ray worker wait on a node for the replica that starts there next.

A start would wait for its worker for half a second and more: a raylet runs a program that imports Ray, before the
worker's own command is run at all. Ray gives an actor a worker that waits, if that one has the actor's job and
runtime environment, and has run nothing yet. Raylets start such workers when they are asked: `PrestartWorkers` in Ray's
src/ray/protobuf/node_manager.proto.
"""

from __future__ import annotations

import logging
import threading

import ray
from ray.runtime_env import RuntimeEnv

from orchestrator import compat
from orchestrator.compat import features, table

logger = logging.getLogger(__name__)
KEEP_S = 86_400  # then Ray ends a worker that nobody came for; it does so at once when the job is over
AS_HERE = ""  # the runtime environment of the one that asks
_ANSWER_S = 10.0
_LATER_S = 5.0


def one_more(environment: str = AS_HERE) -> bool:
    """Ask this node's raylet for one more worker of the job of the one that asks, which is a Ray worker as well.

    Whatever goes wrong only costs the next start its half second.

    Args:
        environment: what `environment_here` is in a worker like the one that is wanted.

    Returns:
        Whether the raylet said yes; it has only begun then.
    """
    if not compat.on(features.PRESTART):
        return False
    try:
        _ask(environment or environment_here())
    except Exception as error:
        logger.info("no worker waits for the next replica: %s: %s", type(error).__name__, error)
        return False
    return True


def later() -> None:
    """The same in a few seconds, beside all else: replicas that start right after this one need the CPU first."""
    timer = threading.Timer(_LATER_S, one_more)
    timer.daemon = True
    timer.start()


def environment_here() -> str:
    """This worker's runtime environment. Ray compares a hash of it, in which each space counts."""
    return str(ray.get_runtime_context().get_runtime_env_string())


def _ask(text: str) -> None:
    context = ray.get_runtime_context()
    environment = compat.get(table.ENVIRONMENT_INFO)(RuntimeEnv.deserialize(text))
    environment.serialized_runtime_env = text
    node = next(node for node in ray.nodes() if node["NodeID"] == context.get_node_id())
    request = compat.get(table.PRESTART_REQUEST)(
        job_id=bytes.fromhex(context.get_job_id()),
        runtime_env_info=environment,
        keep_alive_duration_secs=KEEP_S,
        num_workers=1,
    )  # Python is the message's default language
    address = f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}"
    with compat.get(table.CHANNEL)(address, [("grpc.enable_http_proxy", 0)]) as channel:
        compat.get(table.RAYLET_STUB)(channel).PrestartWorkers(request, timeout=_ANSWER_S)
