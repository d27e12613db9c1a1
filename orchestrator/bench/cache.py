"""What the graph cache itself costs: publish, a node's first restore, a further one, against a plain local copy."""

from __future__ import annotations

import os
import shutil
import statistics
import time
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

from orchestrator.bench.result import BenchResult, Plot
from orchestrator.cluster import provenance
from orchestrator.config import AppConfig
from orchestrator.graph_cache.client import AOT_FOLDER, GraphCacheClient
from orchestrator.graph_cache.restore_result import Outcome
from orchestrator.graph_cache.settings import CacheSettings, cache_settings
from orchestrator.progress import Say
from orchestrator.runs import run
from orchestrator.timeline import EngineFacts, EventLog

_FILES = 16


def measure(app: AppConfig, say: Say) -> BenchResult:
    """For each size: seconds to publish, to restore on a node without and with a copy, and to copy the same files."""
    app = deepcopy(app)
    largest = max(app.bench.sizes_mib)
    app.replicas, app.graph_cache.store = 1, f"{app.graph_cache.store}/bench-{time.time_ns()}"
    app.cluster.object_store_mib = max(app.cluster.object_store_mib, 3 * largest + 200)  # in, held, and on the way
    app.graph_cache.max_served_mib = max(app.graph_cache.max_served_mib, 2 * largest)
    app.graph_cache.max_artifact_mib = max(app.graph_cache.max_artifact_mib, 2 * largest)
    rows: list[dict[str, Any]] = []
    with run.session(app, say) as session:
        settings = cache_settings(app)
        for mib in app.bench.sizes_mib:
            for turn in range(app.bench.rounds):
                say("bench", f"{mib} MiB, round {turn}")
                folder = session.scratch / f"{mib}-{turn}"
                folder.mkdir(parents=True)
                rows.append({"mib": mib, "round": turn, **one_round(settings, folder, mib)})
                shutil.rmtree(folder)
    shutil.rmtree(app.graph_cache.store, ignore_errors=True)
    summary = {str(mib): _medians([r for r in rows if r["mib"] == mib]) for mib in app.bench.sizes_mib}
    plots = tuple(Plot(f"{what}, seconds", f"{what}_s", ("mib", "round")) for what in ("publish", "first", "again"))
    return BenchResult("cache", {"seconds": summary}, rows, provenance.machine(), all(r["ok"] for r in rows), plots)


def one_round(settings: CacheSettings, folder: Path, mib: int) -> dict[str, Any]:
    """Publish made-up graphs of `mib` MiB, restore them twice, and copy them; seconds of each.

    Before each step what the others wrote goes to the disk, so that none waits for another's writes.
    """
    settings = replace(settings, node_folder=str(folder / "node"))
    source = folder / "source"
    files = source / AOT_FOLDER / "graphs"
    files.mkdir(parents=True)
    for i in range(_FILES):
        (files / f"{i}.so").write_bytes(os.urandom((mib << 20) // _FILES))
    factors = {"bench": folder.name, "t": str(time.time_ns())}

    def client(name: str) -> GraphCacheClient:
        return GraphCacheClient(settings, name, EventLog(folder / "events.jsonl"))

    publisher = client("publisher")
    receipt = publisher.restore(factors, source)
    began = _settled()
    published = publisher.publish(receipt, EngineFacts(compiled=1, saved=["graphs"]), source)
    found = {"publish_s": time.perf_counter() - began}
    outcomes = []
    for name in ("first", "again"):
        began = _settled()
        outcomes.append(client(name).restore(factors, folder / name).outcome)
        found[f"{name}_s"] = time.perf_counter() - began
    began = _settled()
    shutil.copytree(source, folder / "copy")
    found["copy_s"] = time.perf_counter() - began
    found["copy_speed_ratio"] = found["copy_s"] / found["first_s"]
    return {k: round(v, 4) for k, v in found.items()} | {
        "ok": published.published and outcomes == [Outcome.hit, Outcome.hit]
    }


def _settled() -> float:
    """The clock, once nothing waits to be written."""
    os.sync()
    return time.perf_counter()


def _medians(rows: list[dict[str, Any]]) -> dict[str, float]:
    names = [k for k, v in rows[0].items() if isinstance(v, float)]
    return {name: round(statistics.median(r[name] for r in rows), 4) for name in names}
