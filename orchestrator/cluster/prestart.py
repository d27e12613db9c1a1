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

from orchestrator import compat
from orchestrator.compat import features, table

logger = logging.getLogger(__name__)
KEEP_S = 3600  # then Ray ends a worker that nobody came for; it does so at once when the job is over
_ANSWER_S = 10.0


def one_more() -> bool:
    """Ask this node's raylet for one more worker like the one that asks: of its job, with its runtime environment.

    To be called in a Ray worker. Whatever goes wrong only costs the next start its half second.

    Returns:
        Whether the raylet said yes; it has only begun then.
    """
    if not compat.on(features.PRESTART):
        return False
    try:
        _ask()
    except Exception as error:
        logger.info("no worker waits for the next replica: %s: %s", type(error).__name__, error)
        return False
    return True


def beside() -> None:
    """The same in a thread, which nobody waits for."""
    threading.Thread(target=one_more, name="prestart", daemon=True).start()


def _ask() -> None:
    context = ray.get_runtime_context()
    text = context.get_runtime_env_string()
    environment = compat.get(table.ENVIRONMENT_INFO)(context.runtime_env)
    environment.serialized_runtime_env = text  # to the letter: Ray compares a hash of it
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
