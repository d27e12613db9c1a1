"""A replica's side of the graph cache: restore before the engine starts, publish after it compiled."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayError

from orchestrator import paths
from orchestrator.errors import ArtifactRefused
from orchestrator.graph_cache import bundle, kernel_caches, key
from orchestrator.graph_cache.node_cache import NodeCopies, name_of
from orchestrator.graph_cache.restore_result import Outcome, Receipt
from orchestrator.graph_cache.settings import CacheSettings
from orchestrator.graph_cache.store import Store
from orchestrator.timeline import EngineFacts, EventLog

_CALL_S = 60.0  # for a call that waits for nothing
_PUBLISH_S = 300.0  # a slow durable store
_TURNS_FROM = 1 << 20  # bytes; smaller bundles are everywhere before a turn is asked for
AOT_FOLDER = Path("torch_compile_cache") / "torch_aot_compile"


@dataclass
class GraphCacheClient:
    """One replica's dealings with the registry.

    Args:
        settings: the cluster's.
        replica: the replica's name.
        events: where the phases are marked.
    """

    settings: CacheSettings
    replica: str
    events: EventLog
    _factors: Mapping[str, str] = field(default_factory=dict)
    _leads: bool = False
    _brought: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.registry = self.settings.registry
        self._stop = threading.Event()
        self._who = f"{self.replica}/{secrets.token_hex(4)}"  # names come again, in the next run and after a restart

    def restore(self, factors: Mapping[str, str], cache_root: Path, unshared: str = "") -> Receipt:
        """Fetch, verify and install the graphs for a key, or become the one who compiles. Never raises.

        Args:
            factors: the compile key's.
            cache_root: where to install.
            unshared: why there is nothing to share; the registry is then not asked.

        Returns:
            A provisional receipt: `hit` means installed, `compiled` means that there was nothing to install.
        """
        # plain strings: torch's version is a class of torch's, and the registry would import torch to read it
        self._factors = {str(name): str(value) for name, value in factors.items()}
        receipt = Receipt(Outcome.compiled, key=key.digest(factors))
        if self.registry is None or unshared:
            return replace(receipt, outcome=Outcome.stock, key="", reason=unshared)
        if not factors:
            return replace(receipt, outcome=Outcome.failed, key="", reason="the engine has no compile key")
        started = time.monotonic()
        try:
            return self._restore(receipt, cache_root, started)
        except Exception as error:
            self.events.mark("cache lookup")
            return replace(receipt, outcome=Outcome.failed, reason=f"{type(error).__name__}: {error}"[:300])

    def publish(self, receipt: Receipt, facts: EngineFacts, cache_root: Path) -> Receipt:
        """Judge the receipt by what vLLM reported, and publish what was compiled as leader. Never raises."""
        receipt = replace(receipt, kernels=kernel_caches.told(self._brought, cache_root))
        if receipt.restored:
            if facts.loaded and not facts.compiled:
                return receipt
            reason = "; ".join(facts.again) or "vLLM looked for its graphs under another name"
            receipt = replace(receipt, outcome=Outcome.unused, reason=reason)
        if receipt.outcome in (Outcome.unused, Outcome.refused):
            receipt = self._replace(receipt)
        if not self._leads:
            return receipt
        try:
            header, data = self._packed(receipt, facts, cache_root)
            call = self.registry.publish.remote(receipt.key, receipt.generation, self._who, header, data)
            done = ray.get(call, timeout=_PUBLISH_S)
            reason = receipt.reason if done else "another replica took over the key meanwhile"
            return replace(receipt, published=done, bytes=header["bytes"], reason=reason)
        except Exception as error:
            self.abandon(receipt)
            return replace(receipt, reason=f"not published: {type(error).__name__}: {error}"[:300])
        finally:
            self._stop.set()

    def abandon(self, receipt: Receipt) -> None:
        """Let another replica compile: this one's start failed."""
        self._stop.set()
        if self._leads and self.registry is not None:
            self.registry.release.remote(receipt.key, receipt.generation, self._who)

    def install_ahead(self, key: str, root: Path | None = None) -> bool:
        """Put a key's graphs onto this node, for replicas to come; False where that is not possible. Never raises.

        Args:
            key: which.
            root: link them there as well: the cache root of a replica's ranks on this node.
        """
        try:
            offer = ray.get(self.registry.offer.remote(key), timeout=_CALL_S)
            return offer is not None and bool(self._install(key, offer, root))
        except Exception:  # a replica that asks will say what is wrong
            return False

    def _restore(self, receipt: Receipt, cache_root: Path, started: float) -> Receipt:
        try:
            return self._restore_once(receipt, cache_root, started)
        except FileNotFoundError:  # evicted since it was offered: whoever asks now may wait for one that compiles it
            return self._restore_once(receipt, cache_root, started)

    def _restore_once(self, receipt: Receipt, cache_root: Path, started: float) -> Receipt:
        wait_s, asked = self.settings.wait_s, time.monotonic()
        call = self.registry.acquire.remote(receipt.key, self._factors, self._who, wait_s)
        answer = ray.get(call, timeout=wait_s + 30)
        waited = time.monotonic() - asked if answer["waited"] else 0.0
        self.events.mark("cache wait" if answer["waited"] else "cache lookup")
        if answer["outcome"] == "timeout":
            reason = f"waited {wait_s:g} s for {answer['leader']}, which compiles the same graphs"
            return replace(receipt, outcome=Outcome.failed, reason=reason, waited_s=waited)
        receipt = replace(receipt, generation=answer["generation"], waited_s=waited)
        if answer["outcome"] == "lead":
            self._lead(receipt)
            return replace(receipt, nearest=tuple(answer["nearest"] or ()))
        try:
            source = self._install(receipt.key, answer, cache_root)
        except ArtifactRefused as error:
            return replace(receipt, outcome=Outcome.refused, reason=str(error))
        finally:
            self.events.mark("install")
        return replace(
            receipt,
            outcome=Outcome.waited if answer["waited"] else Outcome.hit,
            bytes=int(answer["header"].get("bytes", 0)),
            seconds=time.monotonic() - started - waited,
            source=source,
            kv_tokens=int(answer["header"].get("facts", {}).get("kv_tokens", 0)),
        )

    def _install(self, key: str, answer: dict[str, Any], cache_root: Path | None) -> str:
        """Install what the registry offers, from this node's copy if it has one; returns where it came from."""
        settings = self.settings
        signing_key = bundle.signing_key(settings.key_file)
        digest, source = str(answer["header"].get("payload_sha256", "")), "node"

        def fetch() -> memoryview:
            nonlocal source
            data, source = self._fetch(key, answer)
            self.events.mark("fetch")
            manifest, payload = bundle.verify(data, signing_key, key, settings.limits)
            if manifest.payload_sha256 != digest:
                raise ArtifactRefused("A compiled artifact was refused: it is not the one announced.", reason="digest")
            return payload

        copies = NodeCopies(settings.node_folder, settings.node_bytes)
        name = name_of(digest, signing_key)
        copies.link(name, cache_root, fetch, settings.limits)
        self._brought = kernel_caches.spread((cache_root or copies.folder / name) / kernel_caches.PART, cache_root)
        return source

    def _fetch(self, key: str, answer: dict[str, Any]) -> tuple[memoryview, str]:
        """The bundle out of the object store, or out of the durable store where it is not (or no longer) there."""
        if answer["ref"]:
            try:
                with self._turn(key, int(answer["header"].get("bytes", 0))):
                    return memoryview(np.asarray(ray.get(answer["ref"][0], timeout=_CALL_S)).data), "memory"
            except RayError:  # its owner, the registry, is gone or restarted
                pass
        name = str(answer["header"].get("bundle", ""))  # without one it was in memory alone; the newest is another's
        found = Store(self.settings.store).load(key, name) if name else None
        if found is None:
            raise FileNotFoundError(f"neither the object store nor {paths.shown(self.settings.store)} has it")
        return memoryview(found.data), "store"

    @contextmanager
    def _turn(self, key: str, size: int) -> Iterator[None]:
        """Nodes fetch a large bundle in turns, so that it spreads like a tree; none is needed if it does not come."""
        if size < _TURNS_FROM:
            yield
            return
        with suppress(RayError):
            ray.get(self.registry.fetch_turn.remote(key, self._who, _CALL_S), timeout=_CALL_S + 30)
        copied = False
        try:
            yield
            copied = True
        finally:
            self.registry.fetched.remote(key, self._who, copied)

    def _replace(self, receipt: Receipt) -> Receipt:
        """Ask to publish over an entry that was of no use, so that the next replica is better off."""
        try:
            call = self.registry.replace.remote(receipt.key, receipt.generation, self._who)
            generation = ray.get(call, timeout=_CALL_S)
        except Exception as error:
            return replace(receipt, reason=f"{receipt.reason}; {type(error).__name__}: {error}"[:300])
        if not generation:
            return receipt
        receipt = replace(receipt, generation=generation)
        self._lead(receipt)
        return receipt

    def _lead(self, receipt: Receipt) -> None:
        self._leads = True
        threading.Thread(target=self._heartbeat, args=(receipt,), daemon=True).start()

    def _packed(self, receipt: Receipt, facts: EngineFacts, cache_root: Path) -> tuple[dict[str, Any], Any]:
        """A bundle's header, and the bundle in the object store: the memory it was packed in is free again."""
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
        folders += kernel_caches.collect(cache_root, self.settings.limits)
        data = bundle.pack(cache_root, folders, bundle.signing_key(self.settings.key_file), known)
        return {**asdict(bundle.manifest_of(data.data)), "bytes": len(data)}, ray.put(data)

    def _heartbeat(self, receipt: Receipt) -> None:
        every = self.settings.lease_s / 6  # and as long for an answer: two that are lost in a row cost no lease
        while not self._stop.wait(every):
            try:
                if not ray.get(self.registry.renew.remote(receipt.key, receipt.generation, self._who), timeout=every):
                    return
            except Exception:
                continue  # the registry is restarting; the lease decides
