"""One run: configuration in, replicas up, every prompt answered on each, result and report out."""

from __future__ import annotations

import json
import shutil
import statistics
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from orchestrator import models, paths
from orchestrator.cluster import connect, provenance
from orchestrator.cluster.shape import ClusterShape, check_room
from orchestrator.config import AppConfig, ClusterKind
from orchestrator.engine import Sampling
from orchestrator.engine.start_report import StartReport
from orchestrator.fleet import node_models
from orchestrator.fleet.fleet import Fleet
from orchestrator.fleet.plan import make_plan
from orchestrator.fleet.replica import Answer
from orchestrator.graph_cache import bundle
from orchestrator.graph_cache.restore_result import Outcome
from orchestrator.graph_cache.settings import cache_settings
from orchestrator.graph_cache.store import Store
from orchestrator.progress import Say
from orchestrator.weights import arrival
from orchestrator.weights.settings import Weights, weights_of


@dataclass
class RunResult:
    """What a run found; `as_dict` is the documented JSON."""

    config: dict[str, Any]
    machine: dict[str, Any]
    command: str
    started: float
    reports: list[StartReport] = field(default_factory=list)
    answers: dict[str, list[Answer]] = field(default_factory=dict)
    error: str = ""
    seconds: float = 0.0

    @property
    def same_tokens(self) -> bool:
        """Did all replicas give the same greedy tokens for every prompt?"""
        tokens = [[a.token_ids for a in answers] for answers in self.answers.values()]
        return bool(tokens) and all(t == tokens[0] for t in tokens)

    @property
    def graphs_shared(self) -> bool:
        """Did every replica after the first load the graphs, by vLLM's own word? True where sharing is off."""
        later = [report.receipt.outcome for report in self.reports[1:]]
        return all(outcome in (Outcome.hit, Outcome.waited, Outcome.stock) for outcome in later)

    @property
    def tokens_per_s(self) -> float | None:
        """Of the last replica, which was asked all prompts at once."""
        if not self.answers:
            return None
        return round(sum(len(a.token_ids) for a in self._last()) / max(a.seconds for a in self._last()), 1)

    def _last(self) -> list[Answer]:
        return list(self.answers.values())[-1]

    @property
    def ok(self) -> bool:
        """The run's exit code is 0."""
        return not self.error and self.same_tokens and self.graphs_shared

    def summary(self) -> dict[str, Any]:
        """The job's RESULT line."""
        names = ("first", "second")
        return {
            "ok": self.ok,
            "same_tokens": self.same_tokens,
            "second_replica": self.reports[1].receipt.outcome.value if len(self.reports) > 1 else None,
            "first_token_s": {n: round(r.first_token_s, 2) for n, r in zip(names, self.reports, strict=False)},
            "tokens_per_s": self.tokens_per_s,
            "ttft_s": round(statistics.median(a.ttft_s for a in self._last()), 3) if self.answers else None,
            **({"error": self.error} if self.error else {}),
        }

    def as_dict(self) -> dict[str, Any]:
        """The whole result, JSON-ready."""
        return {
            "schema": "orchestrator.run/1",
            **self.summary(),
            "command": self.command,
            "started": self.started,
            "seconds": round(self.seconds, 2),
            "machine": self.machine,
            "config": self.config,
            "replicas": [report.as_dict() for report in self.reports],
            "answers": {name: [asdict(a) for a in answers] for name, answers in self.answers.items()},
        }


@dataclass
class Session:
    """A Ray to run in, and the fleets that were started in it."""

    shape: ClusterShape
    scratch: Path
    say: Say
    model: str
    weights: Weights | None
    _fleets: ExitStack

    def fleet(self, app: AppConfig, label: str = "run") -> Fleet:
        """A fleet for a variation of the session's configuration; it is stopped with the session."""
        weights, model = self.weights, self.model
        if weights and not app.fast_cold_start:  # stock reads it where it is
            weights, model = None, models.resolve(app.model, app.state_dir, app.engine)
        plan = make_plan(app, self.shape, model=model, scratch=str(self.scratch / label))
        for warning in plan.warnings:
            self.say("plan", warning)
        cache = cache_settings(app, share=plan.share_graphs)
        fleet = Fleet(plan, cache, app.cluster.placement_timeout_s, self.say, weights)
        return self._fleets.enter_context(fleet)


@contextmanager
def session(app: AppConfig, say: Say) -> Iterator[Session]:
    """Prepare everything that can fail cheaply, then Ray; leaves nothing behind.

    Raises:
        OrchestratorError: the configuration, the model or the cluster is not right.
    """
    connect.check_asked(app.cluster)
    if app.fast_cold_start and app.cold_start.share_graphs:
        bundle.signing_key(app.graph_cache.key_file)
        if app.cluster.kind is ClusterKind.local:  # else the nodes' own access to it counts
            Store(app.graph_cache.store)
    say("model", f"preparing {app.model.name}")
    weights = weights_of(app)
    model = weights.path if weights else models.resolve(app.model, app.state_dir, app.engine)
    scratch = Path(tempfile.mkdtemp(prefix="orchestrator-"))
    try:
        with (
            connect.connected(app.cluster, say, lambda shape: check_room(app, shape)) as shape,
            ExitStack() as fleets,
        ):
            node_models.make_everywhere([app], shape)
            if weights:
                arrival.begin_here(weights, shape)
            yield Session(shape, scratch, say, model, weights, fleets)
            say("cluster", "shutting down")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def execute(app: AppConfig, say: Say) -> RunResult:
    """Start the fleet, and ask every replica every prompt.

    Args:
        app: the checked configuration.
        say: told what happens, for a progress display.

    Raises:
        OrchestratorError: before anything was started, or because a replica did not come up.
    """
    result = RunResult(_plain(app), provenance.machine(), provenance.command(), time.time())
    sampling = Sampling(max_tokens=app.workload.max_tokens)
    with session(app, say) as current:
        fleet = current.fleet(app)
        result.reports = fleet.start()
        for replica in fleet.plan.replicas:
            say(replica.name, f"answering {len(app.workload.prompts)} prompts")
            result.answers[replica.name] = fleet.ask_one(replica.name, app.workload.prompts, sampling)
    result.seconds = time.time() - result.started
    return result


def _plain(app: AppConfig) -> dict[str, Any]:
    plain = OmegaConf.to_container(OmegaConf.structured(app), enum_to_str=True)
    return {"id": uuid.uuid4().hex[:12], **json.loads(paths.shown(json.dumps(plain)))}
