"""How a call of a replica ended, in this project's errors."""

from __future__ import annotations

from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from orchestrator.errors import OrchestratorError, ReplicaCallError, ReplicaError


def outcome(reference: Any, replica: str, phase: str) -> Any:
    """A call's value, or the error that stands for what went wrong: returned, so that many calls end side by side.

    Args:
        reference: what the call gave; it is waited for.
        replica: who was called.
        phase: what for.
    """
    try:
        return ray.get(reference)
    except RayTaskError as error:
        cause = error.cause
        if isinstance(cause, OrchestratorError):
            return cause
        return ReplicaCallError(f"{replica}: {type(cause).__name__}: {cause}", replica=replica, phase=phase)
    except RayError as error:
        lines = " ".join(str(error).split())
        return ReplicaError(f"{replica}: its process died. {lines[:300]}", replica=replica, phase=phase)
