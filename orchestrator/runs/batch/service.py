"""The service that a batch asks: one of its own for as long as it lasts, or the one at `batch.url`."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

from orchestrator.config import AppConfig, sources
from orchestrator.progress import Say
from orchestrator.runs.batch.address import key_of_environment


@dataclass(frozen=True)
class Target:
    """Whom to ask.

    Attributes:
        url: of the service.
        key: its API key, or "".
        model: for requests that name none, or with `batch.model` for all; None: their own.
    """

    url: str
    key: str
    model: str | None


@contextmanager
def service(app: AppConfig, say: Say) -> Iterator[Target]:
    """A service that is ready.

    Raises:
        OrchestratorError: it did not come up.
    """
    if app.batch.url:
        yield Target(app.batch.url, key_of_environment(), app.batch.model)
        return
    from orchestrator.serve.launch import serving  # vLLM and Ray, which a service elsewhere does not need

    with serving(_for_us_alone(app), say) as found:
        yield Target(found.address, _own_key(app), app.batch.model or found.models[0])


def served(app: AppConfig) -> list[str]:
    """The models that a service of our own will answer to; none: it is a service elsewhere."""
    if app.batch.url:
        return []
    return [sources.model(name, app.search_path).name for name in app.serve.models] or [app.model.name]


def _for_us_alone(app: AppConfig) -> AppConfig:
    from orchestrator.cluster.ray_start import free_ports

    cell = deepcopy(app)
    cell.serve.host = "127.0.0.1"
    (cell.serve.port,) = free_ports(1)  # not one that the system may give to a connection meanwhile
    cell.serve.name = f"batch-{uuid.uuid4().hex[:12]}"  # a guest, where others serve
    cell.serve.route_prefix = f"/{cell.serve.name}"
    return cell


def _own_key(app: AppConfig) -> str:
    """One that a service of our own will take."""
    file = app.serve.api_keys_file
    return next(key for line in Path(file).read_text().splitlines() if (key := line.strip())) if file else ""
