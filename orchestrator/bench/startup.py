"""From the request to the first token: stock vLLM, as it is on CPU and as on GPUs; ours cold, warm, on a new node."""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass
from typing import Any

import psutil
import ray

from orchestrator import models
from orchestrator.bench import baseline, lower_bound
from orchestrator.bench.resources import make_room
from orchestrator.bench.result import BenchResult
from orchestrator.cluster import prestart, provenance
from orchestrator.config import AppConfig
from orchestrator.engine import Sampling
from orchestrator.engine.start_report import StartReport
from orchestrator.engine.vllm import fork_context
from orchestrator.errors import ConfigError
from orchestrator.fleet import node_warmer
from orchestrator.graph_cache.settings import cache_settings
from orchestrator.progress import Say
from orchestrator.runs import run


@dataclass(frozen=True)
class Way:
    """One way to start.

    Attributes:
        outcome: what the graph cache is to say.
        off: levers of `cold_start` that are off.
        base: of baseline.WAYS.
        copied: vLLM's own cache folder is copied to another place first, as vLLM's documentation recommends.
        loads: it has to load what an earlier way saved in that folder, and to compile nothing.
        prefetch: the node was made ready before, as it is for a service, and a Ray worker waits.
    """

    name: str
    outcome: str
    off: tuple[str, ...] = ()
    base: str = "ours"
    copied: bool = False
    loads: bool = False
    prefetch: bool = False


# Each list runs in a Ray of its own, in this order; what a node keeps (zygote, node copies) begins empty with it.
# A new node has none of vLLM's own folders, so that a stock start there is as a cold one.
ROUND = (
    (
        Way("stock_cold", "stock", base="stock"),
        Way("stock_warm", "stock", base="stock"),
        Way("stock_copied", "stock", base="stock", copied=True),
    ),
    (
        Way("stock_gpu_like_cold", "stock", base="stock_gpu_like"),
        Way("stock_gpu_like_warm", "stock", base="stock_gpu_like", loads=True),
        Way("stock_gpu_like_copied", "stock", base="stock_gpu_like", copied=True, loads=True),
    ),
    (
        Way("ours_cold", "compiled", off=baseline.FORK[5:]),  # no worker waits afterwards
        Way("graphs", "hit", off=baseline.FORK),
        Way("graphs+preload", "hit", off=baseline.FORK[1:]),
        Way("graphs+preload+quick_cpu_probe", "hit", off=baseline.FORK[2:]),
        Way("graphs+preload+quick_cpu_probe+short_profile", "hit", off=baseline.FORK[3:]),
        Way("graphs+preload+quick_cpu_probe+short_profile+overlap", "hit", off=baseline.FORK[4:]),
        Way("ours_warm", "hit", prefetch=True),
    ),
    (Way("ours_new_node", "hit"),),
    (Way("ours_pool", "hit", prefetch=True),),
)
BASES = ("stock_cold", "stock_warm", "stock_gpu_like_cold", "stock_gpu_like_warm")  # what the others are compared with
NEEDED = (*BASES, "ours_cold")
_SETTLE_S = 5.0  # for the worker that is to wait: nobody tells when it does


def measure(app: AppConfig, say: Say) -> BenchResult:
    """Every way in each round but `bench.skip`, one start at a time, each replica stopped before the next one starts.

    Raises:
        ConfigError: `bench.skip` names no way, or one that the others need.
    """
    app = deepcopy(app)
    ways_of = chosen(app)
    app.replicas = 1
    make_room(app, 1)
    rows: list[dict[str, Any]] = []
    for turn in range(app.bench.rounds):
        for i, ways in enumerate(ways_of):
            cell = deepcopy(app)
            cell.graph_cache.store = f"{app.graph_cache.store}/{turn}"
            cell.graph_cache.node_folder = f"{app.graph_cache.node_folder}/{turn}-{i}"
            with _own_kernels(), run.session(cell, say) as session:
                for way in ways:
                    if way.prefetch:
                        _make_ready(cell)
                    report, forward_s = _start(session, cell, way)
                    rows.append({**_row(way, turn, report, _idle_mib()), "forward_s": round(forward_s, 3)})
                    say("bench", f"round {turn}, {way.name}: {report.first_token_s:.1f} s")
    model = models.resolve(app.model, app.state_dir)
    found = {
        "import": lower_bound.import_s(),
        "weights": lower_bound.weights_s(model),
        "forward": min(r["forward_s"] for r in rows),
    }
    least = {name: round(seconds, 3) for name, seconds in found.items()}
    summary = _summary(rows, [way for ways in ways_of for way in ways])
    summary["floor_s"] = {**least, "in_all": round(sum(found.values()), 3)}
    return BenchResult("startup", summary, rows, provenance.machine(), all(r["ok"] for r in rows))


def _start(session: run.Session, app: AppConfig, way: Way) -> tuple[StartReport, float]:
    """How the start went, and the seconds of one forward pass when everything is warm."""
    label = way.name if way.copied or way.base == "ours" else way.base  # who shares vLLM's own folder
    if way.copied:
        shutil.copytree(session.scratch / way.base / "vllm-cache", session.scratch / label / "vllm-cache")
    fleet = session.fleet(baseline.cell(app, way.base, way.off), label)
    report = fleet.start_one("replica-0")
    seconds = [fleet.ask_one("replica-0", ["The sea"], Sampling(max_tokens=1))[0].ttft_s for _ in range(3)]
    fleet.stop()
    return report, min(seconds)


@contextmanager
def _own_kernels() -> Iterator[None]:
    """What a node's earlier engines have made beside graphs, stock or ours, is gone too (for a local Ray)."""
    names = ("TRITON_HOME", "TRITON_CACHE_DIR", "DG_JIT_CACHE_DIR", "VLLM_CACHE_ROOT")
    before = {name: os.environ.pop(name, None) for name in names}
    with tempfile.TemporaryDirectory(prefix="orchestrator-kernels-") as folder:
        os.environ.update({"TRITON_HOME": folder, "VLLM_CACHE_ROOT": f"{folder}/vllm"})
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value


def _make_ready(app: AppConfig) -> None:
    cache = cache_settings(app)
    keys = list(ray.get(cache.registry.entries.remote()))
    nodes = [n["NodeID"] for n in ray.nodes()]
    workers = [prestart.AS_HERE] if app.cold_start.prestart_worker else []
    made = node_warmer.make_ready(nodes, cache, fork_context.MODULE, keys, workers=workers)
    ray.get(list(made.values()))
    time.sleep(_SETTLE_S)


def chosen(app: AppConfig) -> list[tuple[Way, ...]]:
    """The ways of each round, list by list.

    Raises:
        ConfigError: `bench.skip` names no way, or one that the others need.
    """
    skip = set(app.bench.skip)
    names = [way.name for ways in ROUND for way in ways if way.name not in NEEDED]
    if unknown := sorted(skip - set(names)):
        raise ConfigError(
            f"bench.skip={unknown} cannot be left out.", where="bench.skip", hint=f"These can: {', '.join(names)}."
        )
    bases = baseline.ways(app)
    chosen = [tuple(way for way in ways if way.name not in skip and way.base in bases) for ways in ROUND]
    return [ways for ways in chosen if ways]


def _summary(rows: list[dict[str, Any]], ways: list[Way]) -> dict[str, Any]:
    found = {way.name: [r["first_token_s"] for r in rows if r["way"] == way.name] for way in ways}
    summary: dict[str, Any] = {"first_token_s": {way: round(statistics.median(s), 2) for way, s in found.items()}}
    summary["spread_s"] = {way: [min(s), max(s)] for way, s in found.items()}
    for base in [base for base in BASES if base in found]:
        paired = {
            w.name: [b / s for b, s in zip(found[base], found[w.name], strict=True)] for w in ways if w.base == "ours"
        }
        summary[f"sooner_than_{base}"] = {way: round(statistics.median(p), 2) for way, p in paired.items()}
    summary["idle_mib"] = max(r["idle_mib"] for r in rows)
    return summary


def _row(way: Way, turn: int, report: StartReport, idle_mib: float) -> dict[str, Any]:
    outcome = report.receipt.outcome.value
    return {
        "way": way.name,
        "round": turn,
        "first_token_s": round(report.first_token_s, 2),
        "receipt": outcome,
        "idle_mib": round(idle_mib),
        "ok": outcome == way.outcome and (not way.loads or (report.facts.loaded > 0 and not report.facts.compiled)),
        "phases": [asdict(phase) for phase in report.phases],
    }


def _idle_mib() -> float:
    """What a node's zygote takes once no replica is left: memory that no other process shares, in MiB."""
    found = 0.0
    for process in psutil.process_iter(["cmdline"]):
        if "orchestrator.zygote.server" in (process.info["cmdline"] or ()):
            found += process.memory_full_info().uss / 2**20
    return found
