"""Models that we make or convert are made on every node: its replicas read them from its own disk."""

from __future__ import annotations

from collections.abc import Iterable

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator import models
from orchestrator.cluster.shape import ClusterShape
from orchestrator.config import AppConfig, ModelSource
from orchestrator.errors import ModelError, one_line

_MADE = (ModelSource.tiny, ModelSource.smollm2)
_CALL_S = 600.0  # for the slowest node


def make_everywhere(apps: Iterable[AppConfig], shape: ClusterShape) -> None:
    """Have the other nodes make these configurations' models, where they are not there yet; waits for it.

    A node that is lost meanwhile is no error: no replica starts there. One that joins later makes none.

    Raises:
        ModelError: a node cannot make one.
    """
    made = [app for app in apps if app.model.source in _MADE]
    if not made or len(shape.nodes) < 2:
        return
    here = ray.get_runtime_context().get_node_id()
    others = {n["NodeID"]: n["NodeManagerAddress"] for n in ray.nodes() if n["Alive"] and n["NodeID"] != here}
    task = ray.remote(num_cpus=0, max_retries=0)(models.resolve)  # what `options` returns has none itself
    calls = {
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(
            app.model, app.state_dir, app.engine
        ): (app.model.name, address)
        for node, address in others.items()
        for app in made
    }
    for call, (name, address) in calls.items():
        try:
            ray.get(call, timeout=_CALL_S)
        except RayTaskError as error:
            cause = one_line(error.cause)
            raise ModelError(f"Node {address} cannot make {name}: {cause}", model=name, where="model") from error
        except RayError:
            continue
