"""Where replicas run: a placement group for each of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray
from ray.util.placement_group import placement_group, placement_group_table, remove_placement_group

from orchestrator.errors import PlacementError
from orchestrator.fleet.plan import ReplicaPlan


class Placement:
    """The placement groups of a fleet's replicas. A group stays with its replica until all are removed.

    Args:
        timeout_s: seconds in which replicas that are placed together have to have their room.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._groups: dict[str, Any] = {}

    def place(self, replicas: Sequence[ReplicaPlan]) -> None:
        """Give replicas their room. All ask before any waits: Ray finds room for them side by side.

        Raises:
            PlacementError: the cluster did not have room for all of them in time.
        """
        for replica in replicas:
            if replica.name not in self._groups:
                bundles = [dict(bundle) for bundle in replica.bundles]
                self._groups[replica.name] = placement_group(bundles, strategy=replica.strategy)
        placed = {self._groups[replica.name].ready(): replica for replica in replicas}
        _, missing = ray.wait(list(placed), num_returns=len(placed), timeout=self._timeout_s)
        if missing:
            raise self._no_room([placed[ref] for ref in missing])

    def group(self, name: str) -> Any:
        """A replica's placement group."""
        return self._groups[name]

    def nodes(self, replicas: Sequence[ReplicaPlan]) -> set[str]:
        """The nodes that placed replicas are on, by their Ray ids."""
        tables = [placement_group_table(self._groups[r.name]) for r in replicas]
        return {node for table in tables for node in table["bundles_to_node_id"].values()}

    def remove(self) -> None:
        """Give all room back."""
        for group in self._groups.values():
            remove_placement_group(group)
        self._groups.clear()

    def _no_room(self, missing: Sequence[ReplicaPlan]) -> PlacementError:
        """Ray places a replica's bundles together or not at all, so all of them are unmet."""
        first, *others = missing
        free = {k: v for k, v in ray.available_resources().items() if k in ("CPU", "GPU")}
        bundles = [dict(bundle) for bundle in first.bundles]
        also = f"; none either for {', '.join(r.name for r in others)}" if others else ""
        return PlacementError(
            f"{first.name}: no room for {bundles} ({first.strategy}) within {self._timeout_s:g} s; "
            f"free in the cluster: {free}{also}.",
            hint="Lower replicas, or add nodes.",
            replica=first.name,
            bundles=bundles,
        )
