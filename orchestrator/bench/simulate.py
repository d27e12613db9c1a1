"""Start-up of clusters that are larger than what can be measured here: a model, fed and checked by what can be."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from typing import Any

from ray.cluster_utils import Cluster

from orchestrator.bench import cache as cache_bench
from orchestrator.bench.result import BenchResult, Plot
from orchestrator.bench.simulator import steps
from orchestrator.bench.simulator.start_model import Constants, Scale, simulate
from orchestrator.cluster import provenance
from orchestrator.config import AppConfig, ClusterKind, EngineKind
from orchestrator.engine.start_report import StartReport
from orchestrator.graph_cache.settings import cache_settings
from orchestrator.progress import Say
from orchestrator.runs import run

RESOURCES = ("placement", "registry", "network", "install")
_NODES = 4  # Ray nodes, all on this machine
_CHECKED = (2, 4, 8)  # replicas
_MIB = 16  # of graphs, in the checks
_DISK = "ORCHESTRATOR_BENCH_DISK"  # each node has its own
_OFF = 0.2  # how far the model may be from what was measured


def measure(app: AppConfig, say: Say) -> BenchResult:
    """Measure the model's constants, check it against small fleets, and let it start large ones."""
    real = _figures(run.execute(_two(app), say).reports)
    with _nodes(app) as cell, run.session(cell, say) as session:
        say("bench", "constants")
        constants = _constants(session, cell)
        checks = [
            row
            for turn in range(app.bench.rounds)
            for row in (_check(session, cell, constants, n, turn, say) for n in _CHECKED)
        ]
    large = replace(constants, **{k: v for k, v in real.items() if k != "artifact_mib"})
    rows = checks + [row for scale in _scales(app, real["artifact_mib"]) for row in _worth(large, scale, say)]
    medians = {n: _medians([row for row in checks if row["replicas"] == n]) for n in _CHECKED}
    worst = max(abs(found["off"]) for found in medians.values())
    summary = {
        "constants_ms": {name: round(1000 * value, 3) for name, value in vars(large).items()},
        "checks": {f"{n} replicas": found for n, found in medians.items()},
        "worst_off": round(worst, 3),
        "last_s": {_name(row): row["simulated_s"] for row in rows if row["without"] == "-"},
        "saved_without_s": _saved(rows),
        "with_1000_calls": _thousand_calls(large, app, real["artifact_mib"]),
    }
    plots = (Plot("Seconds until the last replica's first token", "simulated_s", ("start", "mib", "without"), "nodes"),)
    return BenchResult("simulate", summary, rows, provenance.machine(), worst <= _OFF, plots)


def _two(app: AppConfig) -> AppConfig:
    cell = deepcopy(app)
    cell.replicas, cell.fast_cold_start = 2, True
    return cell


def _figures(reports: list[StartReport]) -> dict[str, float]:
    """From a replica that compiled and one that loaded: the steps around the registry, in seconds."""
    cold, warm = reports
    return {
        "process_s": _end(warm, "plan") - _end(warm, "placement"),
        "compile_s": cold.first_token_s - _end(cold, "cache lookup"),
        "load_s": warm.first_token_s - _end(warm, "install"),
        "artifact_mib": warm.receipt.bytes / 2**20,
    }


def _end(report: StartReport, phase: str) -> float:
    return next(p.start + p.seconds for p in report.phases if p.name == phase)


@contextmanager
def _nodes(app: AppConfig) -> Iterator[AppConfig]:
    """Several Ray nodes on this machine; yields a configuration of fake engines in them."""
    cell = deepcopy(app)
    cell.engine.kind, cell.cluster.kind = EngineKind.fake, ClusterKind.existing
    cell.engine.extra = {"fake_compile_s": 1.0, "fake_mib": _MIB}
    cell.graph_cache.node_folder = f"${_DISK}"
    nodes = {"num_cpus": max(_CHECKED), "object_store_memory": 256 << 20}
    # no worker waits ready: each replica pays for its own process, as it does in a cluster that others use too
    settings = {"prestart_worker_first_driver": False, "enable_worker_prestart": False}
    with tempfile.TemporaryDirectory(prefix="orchestrator-nodes-") as disks:
        disk = [{"env_vars": {_DISK: f"{disks}/{i}"}} for i in range(_NODES)]
        cluster = Cluster(initialize_head=True, head_node_args={**nodes, **disk[0], "_system_config": settings})
        try:
            for own in disk[1:]:
                cluster.add_node(**nodes, **own)
            cluster.wait_for_nodes()
            cell.cluster.address = cluster.address
            yield cell
        finally:
            cluster.shutdown()


def _constants(session: run.Session, app: AppConfig) -> Constants:
    settings = cache_settings(app)
    cached = cache_bench.one_round(settings, session.scratch / "constants", _MIB)
    alone = [_fleet(session, app, 1, f"alone-{i}") for i in range(4)][1:]  # the first one warms up
    cold = [report for _, (report,) in alone]
    return Constants(
        place_s=steps.place_s(),
        process_s=statistics.median(_end(r, "plan") - _end(r, "placement") for r in cold),
        ask_s=steps.ask_s(settings.registry),
        publish_s=cached["publish_s"] / _MIB,
        transfer_s=steps.transfer_s(),
        install_s=cached["first_s"] / _MIB,
        link_s=cached["again_s"],
        compile_s=statistics.median(r.first_token_s - _end(r, "cache lookup") for r in cold),
        load_s=0.0,  # a fake engine's
    )


def _fleet(session: run.Session, app: AppConfig, replicas: int, label: str) -> tuple[float, list[StartReport]]:
    """Start fake replicas of a key that nobody has, all at once; seconds until the last one is ready."""
    cell = deepcopy(app)
    cell.replicas, cell.engine.extra = replicas, {**app.engine.extra, "fake_code": label}
    cell.cluster.placement_strategy = "SPREAD"
    fleet = session.fleet(cell, label)
    began = time.perf_counter()
    reports = fleet.start(at_once=True)
    seconds = time.perf_counter() - began
    fleet.stop()
    return seconds, reports


def _check(
    session: run.Session, app: AppConfig, constants: Constants, replicas: int, turn: int, say: Say
) -> dict[str, Any]:
    measured, reports = _fleet(session, app, replicas, f"check-{replicas}-{turn}")
    scale = Scale(_NODES, replicas, _MIB, provenance.machine()["cores"], _NODES, cold=True)
    row = _row(scale, "checked", simulate(constants, scale).last_s)
    row |= {"measured_s": round(measured, 2), "off": round(row["simulated_s"] / measured - 1, 3)}
    row["compiled"] = sum(report.facts.compiled for report in reports)
    say("bench", f"{replicas} replicas: {measured:.2f} s, simulated {row['simulated_s']:.2f} s")
    return row


def _scales(app: AppConfig, artifact_mib: float) -> list[Scale]:
    bench = app.bench
    return [
        Scale(nodes, nodes * bench.replicas_per_node, mib, bench.cores_per_node, cold=cold, boot_s=bench.boot_s)
        for cold in (False, True)
        for mib in (round(artifact_mib, 1), *bench.sizes_mib)
        for nodes in bench.nodes
    ]


def _worth(constants: Constants, scale: Scale, say: Say) -> list[dict[str, Any]]:
    """As it is, without what each resource costs, and without turns."""
    say("bench", f"{scale.nodes} nodes, {scale.replicas} replicas, {scale.artifact_mib:g} MiB")
    start = "cold" if scale.cold else "warm"
    ways = {"-": scale, **{name: replace(scale, free=frozenset({name})) for name in RESOURCES}}
    ways["turns"] = replace(scale, turns=False)
    return [_row(way, start, simulate(constants, way).last_s, name) for name, way in ways.items()]


def _row(scale: Scale, start: str, seconds: float, without: str = "-") -> dict[str, Any]:
    return {
        "start": start,
        "nodes": scale.nodes,
        "replicas": scale.replicas,
        "mib": scale.artifact_mib,
        "without": without,
        "simulated_s": round(seconds, 2),
        "measured_s": None,
        "off": None,
        "compiled": None,
    }


def _medians(rows: list[dict[str, Any]]) -> dict[str, float]:
    return {
        name: round(statistics.median(row[name] for row in rows), 3) for name in ("measured_s", "simulated_s", "off")
    }


def _saved(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """For each start, by how many seconds it would be sooner without each resource."""
    whole = {_name(row): row["simulated_s"] for row in rows if row["without"] == "-"}
    saved: dict[str, dict[str, float]] = {}
    for row in rows:
        if row["without"] != "-":
            saved.setdefault(_name(row), {})[row["without"]] = round(whole[_name(row)] - row["simulated_s"], 2)
    return saved


def _name(row: dict[str, Any]) -> str:
    return f"{row['start']}, {row['nodes']} nodes, {row['replicas']} replicas, {row['mib']:g} MiB"


def _thousand_calls(constants: Constants, app: AppConfig, artifact_mib: float) -> str:
    """What becomes of the largest cold start if the registry has 1000 calls open at most, which is Ray's default."""
    nodes = max(app.bench.nodes)
    replicas = nodes * app.bench.replicas_per_node
    scale = Scale(nodes, replicas, artifact_mib, app.bench.cores_per_node, cold=True, calls=1000)
    try:
        return f"the last one is ready after {simulate(constants, scale).last_s:.1f} s"
    except ValueError as error:
        return str(error)
