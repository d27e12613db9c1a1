"""A replica's side of the graph cache: restore before the engine starts, publish after it compiled."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import ray

from orchestrator.errors import ArtifactRefused
from orchestrator.graph_cache import bundle, key
from orchestrator.timeline import EngineFacts, EventLog

_CALL_S = 60.0  # for a call that waits for nothing
AOT_FOLDER = Path("torch_compile_cache") / "torch_aot_compile"


class Outcome(Enum):
    """How a start got its graphs."""

    hit = "hit"  # vLLM loaded the shared artifact, and compiled nothing
    compiled = "compiled"
    waited = "waited"  # a hit, after waiting for the replica that compiled
    inert = "inert"  # restored, yet vLLM compiled again
    refused = "refused"  # the artifact was not authentic or not safe; compiled instead
    failed = "failed"  # the cache failed (store, registry, disk); compiled instead
    stock = "stock"  # plain vLLM, no shared graphs asked for


@dataclass(frozen=True)
class Receipt:
    """What the graph cache did for one start, in the end judged by what vLLM itself reported."""

    outcome: Outcome
    reason: str = ""
    key: str = ""
    generation: int = 0
    bytes: int = 0
    seconds: float = 0.0
    waited_s: float = 0.0
    published: bool = False
    nearest: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """A JSON-ready copy."""
        return {**asdict(self), "outcome": self.outcome.value, "nearest": list(self.nearest)}


@dataclass
class GraphCacheClient:
    """One replica's dealings with the registry.

    Args:
        registry: the registry's actor handle, or None: nothing is shared.
        replica: the replica's name.
        events: where the phases are marked.
        signing_key_file: see `bundle.signing_key`.
        limits: ceilings on what is unpacked.
        wait_s: how long to wait for a replica that compiles.
        lease_s: the registry's lease.
    """

    registry: Any
    replica: str
    events: EventLog
    signing_key_file: str
    limits: bundle.Limits
    wait_s: float
    lease_s: float
    _factors: Mapping[str, str] = field(default_factory=dict)
    _leads: bool = False
    _stop: threading.Event = field(default_factory=threading.Event)

    def restore(self, factors: Mapping[str, str], cache_root: Path) -> Receipt:
        """Fetch, verify and install the graphs for a key, or become the one who compiles. Never raises.

        Returns:
            A provisional receipt: `hit` means installed, `compiled` means that there was nothing to install.
        """
        self._factors = factors
        receipt = Receipt(Outcome.compiled, key=key.digest(factors))
        if self.registry is None:
            return replace(receipt, outcome=Outcome.stock, key="")
        started = time.monotonic()
        try:
            return self._restore(receipt, cache_root, started)
        except Exception as error:
            self.events.mark("cache lookup")
            return replace(receipt, outcome=Outcome.failed, reason=f"{type(error).__name__}: {error}"[:300])

    def settle(self, receipt: Receipt, facts: EngineFacts, cache_root: Path) -> Receipt:
        """Judge the receipt by what vLLM reported, and publish what was compiled as leader. Never raises."""
        if receipt.outcome in (Outcome.hit, Outcome.waited):
            if facts.loaded and not facts.compiled:
                return receipt
            reason = "; ".join(facts.again) or "vLLM looked for its graphs under another name"
            receipt = replace(receipt, outcome=Outcome.inert, reason=reason)
        if receipt.outcome in (Outcome.inert, Outcome.refused):
            receipt = self._replace(receipt)
        if not self._leads:
            return receipt
        try:
            data = self._pack(receipt, facts, cache_root)
            header = {"factors": dict(self._factors), "bytes": len(data), "publisher": self.replica}
            done = ray.get(self.registry.publish.remote(receipt.key, receipt.generation, header, data), timeout=_CALL_S)
            reason = receipt.reason if done else "another replica took over the key meanwhile"
            return replace(receipt, published=done, bytes=len(data), reason=reason)
        except Exception as error:
            self.give_up(receipt)
            return replace(receipt, reason=f"not published: {type(error).__name__}: {error}"[:300])
        finally:
            self._stop.set()

    def give_up(self, receipt: Receipt) -> None:
        """Let another replica compile: this one's start failed."""
        self._stop.set()
        if self._leads and self.registry is not None:
            self.registry.release.remote(receipt.key, receipt.generation)

    def _restore(self, receipt: Receipt, cache_root: Path, started: float) -> Receipt:
        answer = ray.get(
            self.registry.acquire.remote(receipt.key, dict(self._factors), self.replica, self.wait_s),
            timeout=self.wait_s + 30,
        )
        waited = time.monotonic() - started if answer["waited"] else 0.0
        self.events.mark("cache wait" if answer["waited"] else "cache lookup")
        if answer["outcome"] == "timeout":
            reason = f"waited {self.wait_s:g} s for {answer['leader']}, which compiles the same graphs"
            return replace(receipt, outcome=Outcome.failed, reason=reason, waited_s=waited)
        receipt = replace(receipt, generation=answer["generation"], waited_s=waited)
        if answer["outcome"] == "lead":
            self._leads = True
            threading.Thread(target=self._heartbeat, args=(receipt,), daemon=True).start()
            return replace(receipt, nearest=tuple(answer["nearest"] or ()))
        data = memoryview(np.asarray(ray.get(answer["ref"][0])).data)
        self.events.mark("fetch")
        try:
            _, payload = bundle.verify(data, bundle.signing_key(self.signing_key_file), receipt.key, self.limits)
            bundle.install(payload, cache_root, self.limits)
        except ArtifactRefused as error:
            return replace(receipt, outcome=Outcome.refused, reason=str(error))
        finally:
            self.events.mark("install")
        return replace(
            receipt,
            outcome=Outcome.waited if answer["waited"] else Outcome.hit,
            bytes=len(data),
            seconds=time.monotonic() - started - waited,
        )

    def _replace(self, receipt: Receipt) -> Receipt:
        """Ask to publish over an entry that was of no use, so that the next replica is better off."""
        try:
            call = self.registry.replace.remote(receipt.key, receipt.generation, self.replica)
            generation = ray.get(call, timeout=_CALL_S)
        except Exception as error:
            return replace(receipt, reason=f"{receipt.reason}; {type(error).__name__}: {error}"[:300])
        self._leads = bool(generation)
        return replace(receipt, generation=generation or receipt.generation)

    def _pack(self, receipt: Receipt, facts: EngineFacts, cache_root: Path) -> bytes:
        folders = sorted(path for path in (cache_root / AOT_FOLDER).glob("*") if path.is_dir())
        if not facts.saved or not folders:
            raise FileNotFoundError("vLLM saved no compiled graph")
        known = {
            "key": receipt.key,
            "factors": dict(self._factors),
            "created": time.time(),
            "publisher": self.replica,
            "facts": {"kv_tokens": facts.kv_tokens, "compile_s": facts.compile_s},
        }
        return bundle.pack(cache_root, folders, bundle.signing_key(self.signing_key_file), known)

    def _heartbeat(self, receipt: Receipt) -> None:
        while not self._stop.wait(self.lease_s / 3):
            try:
                if not ray.get(self.registry.renew.remote(receipt.key, receipt.generation), timeout=_CALL_S):
                    return
            except Exception:
                continue  # the registry is restarting; the lease decides
