"""What a node needs to know to get a model from others."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from orchestrator import models, paths
from orchestrator.config import AppConfig, ModelConfig, ModelSource, WeightsConfig
from orchestrator.errors import ConfigError, ModelError, one_line
from orchestrator.models import folder, weights_needed
from orchestrator.weights.listing import File, Listing, look, read_file


@dataclass(frozen=True)
class Bounds:
    """Limits.

    Attributes:
        folder: where each node keeps models. `~` and `$NAME` are read on the node.
        max_bytes: of models that a node keeps.
        streams: pieces that a node fetches, and gives, at a time; of each one part is in the object store.
        readers: pieces that the cluster reads from the origin at a time.
        patience_s: how long a part of a piece may take.
    """

    folder: str
    max_bytes: int
    streams: int
    readers: int
    patience_s: float


@dataclass(frozen=True)
class Weights:
    """A model that travels from node to node.

    Attributes:
        listing: what it consists of.
        bounds: limits.
        key_file: see `graph_cache.bundle.signing_key`.
        namespace: of the cluster's actors.
        needed: why its graphs cannot be compiled before the weights are there; "" where they can.
    """

    listing: Listing
    bounds: Bounds
    key_file: str
    namespace: str
    needed: str = ""

    def plain(self) -> dict[str, Any]:
        """As JSON has it; `from_plain` reads it."""
        return asdict(self)

    @classmethod
    def from_plain(cls, found: Mapping[str, Any]) -> Weights:
        """What `plain` gave."""
        listed = found["listing"]
        listing = Listing(**{**listed, "files": tuple(File(**file) for file in listed["files"])})
        return cls(**{**found, "listing": listing, "bounds": Bounds(**found["bounds"])})

    @property
    def folder(self) -> str:
        """Where this node keeps models."""
        return os.path.abspath(os.path.expandvars(os.path.expanduser(self.bounds.folder)))

    @property
    def path(self) -> str:
        """Where the model is on this node."""
        return f"{self.folder}/{self.listing.version}"


def weights_of(app: AppConfig) -> Weights | None:
    """What a configuration says of a model that travels; None: each replica reads it where it is. Needs no Ray.

    Raises:
        ModelError: the origin cannot be read, or is no model.
        ConfigError: it does not fit `weights.max_gib`, or not the engine.
    """
    model, bounds = app.model, app.weights
    if not (app.fast_cold_start and app.cold_start.share_weights):
        return None
    if model.source not in (ModelSource.path, ModelSource.hub):  # the others are made on each node
        return None
    made_up = not model.weights
    origin = model.id if "://" in model.id else os.path.abspath(os.path.expanduser(model.id))
    if model.source is ModelSource.hub and not os.path.isdir(origin):
        origin = _on_the_hub(model)
    elif "://" not in origin:
        models.resolve(model, app.state_dir, app.engine)  # for its checks
    listing = look(model.name, origin, bounds.piece_mib << 20, weights=not made_up)
    config = _config(app, listing)
    if not listing.is_folder:
        folder.check_config(config, paths.shown(origin), model, app.engine)
    limits = bounds_of(bounds)
    if listing.bytes > limits.max_bytes:
        raise ConfigError(
            f"{model.name} has {listing.bytes / 2**30:.1f} GiB, and weights.max_gib={bounds.max_gib:g}.",
            where="weights.max_gib",
        )
    needed = "none travel" if made_up else weights_needed.why_by(config, [f.name for f in listing.files], app.engine)
    return Weights(listing, limits, app.graph_cache.key_file, app.cluster.namespace, needed)


def bounds_of(config: WeightsConfig) -> Bounds:
    """The limits that the settings give; half of what may be in flight is for what comes, half for what goes."""
    per_node = "$" in config.folder or config.folder.startswith("~")  # else one path, and workers are in other folders
    return Bounds(
        folder=config.folder if per_node else os.path.abspath(config.folder),
        max_bytes=int(config.max_gib * 2**30),
        streams=max(1, config.in_flight_mib // config.piece_mib // 2),
        readers=config.origin_readers,
        patience_s=config.piece_timeout_s,
    )


def _on_the_hub(model: ModelConfig) -> str:
    """A model's URI on the hub, by its commit: a branch may move on while nodes fetch."""
    from huggingface_hub import HfApi

    try:
        commit = HfApi().model_info(model.id, revision=model.revision).sha
    except Exception as error:
        raise ModelError(
            f"{model.id} is not to be had from the hub: {one_line(error)}", model=model.name, where="model.id",
            hint="Check model.id, model.revision and HF_TOKEN; without a hub, use model=local_path.",
        ) from error  # fmt: skip
    return f"hf://{model.id}@{commit}"


def _config(app: AppConfig, listing: Listing) -> dict[str, Any]:
    try:
        config = json.loads(read_file(listing, "config.json"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{paths.shown(listing.origin)}/config.json cannot be read: {paths.shown(one_line(error))}",
            model=app.model.name, where="model.id", hint="Set model.id to a model's folder.",
        ) from error  # fmt: skip
    return config if isinstance(config, dict) else {}
