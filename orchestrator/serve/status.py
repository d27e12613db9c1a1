"""The status page: replicas, how each one started or how far it is, and what the graph cache holds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextlib import suppress
from importlib import resources
from typing import Any

from jinja2 import Environment
from ray.exceptions import RayError

from orchestrator.graph_cache import registry_actor
from orchestrator.serve.status_board import Board
from orchestrator.timeline.colours import COLOURS


async def collect(namespace: str, waiting: Mapping[str, int]) -> dict[str, Any]:
    """What the page shows, JSON-ready.

    Args:
        namespace: of the cluster's actors.
        waiting: for models without a replica, how many requests wait for the first.
    """
    entries: dict[str, Any] = {}
    replicas: list[dict[str, Any]] = []
    starting: list[dict[str, Any]] = []
    with suppress(RayError):  # it is being restarted, and will be told again
        board = Board.connect(namespace)
        replicas, starting = await asyncio.gather(board.replicas.remote(), board.starts.remote())
    with suppress(RayError, ValueError):  # nobody shares graphs
        for registry in await asyncio.to_thread(registry_actor.running, namespace):
            entries |= await registry.entries.remote()
    graphs = [
        {
            "key": key,
            "bytes": header.get("bytes", 0),
            "created": header.get("created", 0.0),
            "publisher": header.get("publisher", ""),
            "architecture": header.get("factors", {}).get("architecture", ""),
        }
        for key, header in entries.items()
    ]
    return {
        "schema": "orchestrator.status/1",
        "now": time.time(),
        "replicas": replicas,
        "starting": starting,
        "waiting": dict(waiting),
        "graphs": graphs,
    }


def page(found: dict[str, Any]) -> str:
    """`collect`'s result as HTML that stands alone."""
    template = resources.files("orchestrator.serve").joinpath("status.html.j2").read_text()
    longest = max((r["first_token_s"] for r in found["replicas"]), default=1.0)
    return Environment(autoescape=True).from_string(template).render(**found, colours=COLOURS, longest=longest)
