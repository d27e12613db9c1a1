"""What a start needs of others, as it sees them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from orchestrator import timeline
from orchestrator.graph_cache.restore_result import Receipt


class GraphCache(Protocol):
    """What a start needs of the graph cache; see graph_cache/client.py."""

    def restore(self, factors: Mapping[str, str], cache_root: Path, unshared: str) -> Receipt:
        """Install the graphs for a compile key, or become the one who compiles; neither where a reason says why."""

    def publish(self, receipt: Receipt, facts: timeline.EngineFacts, cache_root: Path) -> Receipt:
        """Judge the receipt by what vLLM reported, and publish what was compiled."""

    def abandon(self, receipt: Receipt) -> None:
        """Let another replica compile."""


class OtherNodes(Protocol):
    """The other nodes of a replica that does not fit one; see fleet/multi_node.py."""

    def prepare(self, key: str) -> list[bool]:
        """Make the replica's folder there, with what vLLM's ranks look for in it, and a key's graphs; "": none."""

    def read_events(self) -> None:
        """Fetch what vLLM said there, into the replica's events."""

    def gather(self, key: str) -> None:
        """Fetch what was compiled there."""

    def clean(self) -> None:
        """Remove the replica's folder there."""


class ModelFiles(Protocol):
    """A model that is on its way to the replica's node; see weights/arrival.py."""

    @property
    def brought(self) -> Any:
        """How it came: a dataclass; None: not all is there yet."""

    def configuration(self) -> None:
        """Wait for its configuration and tokenizer; raises EngineStartError if they do not come."""

    def all(self) -> None:
        """Wait for all of it; raises EngineStartError if it does not come."""


class Processes(Protocol):
    """A watch over the processes of an engine; see engine/vllm/supervisor.py."""

    replica: str

    def begin(self, *, restored: bool) -> None:
        """From here on they are watched."""

    def overdue(self) -> bool:
        """Their start has failed or timed out, whether or not vLLM has noticed."""

    def cause(self) -> str:
        """Why, in vLLM's words; "" where it did not say."""

    def phase(self) -> str:
        """How far the start came."""

    def kill(self) -> None:
        """Kill them."""

    def started(self) -> None:
        """The start is over."""

    def end(self) -> None:
        """Kill what is left of them, and remove what they leave behind."""
