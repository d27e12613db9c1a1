"""Compile ahead of time: publish a model's graphs to the durable store, and prove that a fresh replica loads them."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from orchestrator.config import AppConfig
from orchestrator.engine.start_report import StartReport
from orchestrator.errors import ConfigError, EngineStartError
from orchestrator.graph_cache.restore_result import Outcome
from orchestrator.models import weights_needed
from orchestrator.progress import Say
from orchestrator.runs import run

_LOADED = (Outcome.hit, Outcome.waited)
_KV_GAP = 0.02  # vLLM measures the device's free memory at each start, and others use it too


@dataclass(frozen=True)
class WarmResult:
    """What was compiled and what loaded it.

    Attributes:
        first: the replica that compiled, or found everything in the store already.
        second: the fresh replica that loaded what the first published; None where the first had nothing to publish.
        weights: why both had the model's weights; "" where vLLM made some up.
    """

    model: str
    first: StartReport
    second: StartReport | None
    weights: str

    @property
    def kv_parity(self) -> bool:
        """Did both replicas find room for as many KV-cache tokens, as far as vLLM's profiling is exact?

        A start that compiles must not leave less room than one that loads (vLLM issue 54122).
        """
        if self.second is None:
            return True
        one, other = self.first.facts.kv_tokens, self.second.facts.kv_tokens
        return abs(one - other) <= _KV_GAP * max(one, other)

    @property
    def ok(self) -> bool:
        """The graphs are in the store, and load."""
        return self.kv_parity and (self.second or self.first).receipt.outcome in _LOADED

    def summary(self) -> dict[str, Any]:
        """The job's RESULT line."""
        reports = [r for r in (self.first, self.second) if r is not None]
        return {
            "ok": self.ok,
            "model": self.model,
            "key": self.first.receipt.key,
            "weights": f"the model's: {self.weights}" if self.weights else "made up",
            "outcomes": [r.receipt.outcome.value for r in reports],
            "published": self.first.receipt.published,
            "bytes": self.first.receipt.bytes,
            "kv_tokens": [r.facts.kv_tokens for r in reports],
            "kv_parity": self.kv_parity,
            "first_token_s": [round(r.first_token_s, 2) for r in reports],
        }


def execute(app: AppConfig, say: Say) -> WarmResult:
    """Start one replica; if it compiled, start another after it. No weights are read where the graphs do not need them.

    Raises:
        ConfigError: nothing would be shared.
        OrchestratorError: a replica did not come up.
    """
    if not (app.fast_cold_start and app.cold_start.share_graphs) or app.engine.enforce_eager:
        raise ConfigError(
            "There is nothing to warm: graphs are not shared.",
            where="fast_cold_start",
            hint="Set fast_cold_start=true, cold_start.share_graphs=true and engine.enforce_eager=false.",
        )
    app = deepcopy(app)
    app.replicas = 1
    reason = "warm.weights=true" if app.warm.weights else weights_needed.why(app.model, app.engine)
    if not reason:
        try:
            return _warmed(_without_weights(app), say, "")
        except EngineStartError as error:
            reason = f"without them {error}"
    say("warm", f"with the model's weights: {reason}")
    return _warmed(app, say, reason)


def _without_weights(app: AppConfig) -> AppConfig:
    app = deepcopy(app)
    app.model.weights = False
    app.engine.load_format = "auto"
    return app


def _warmed(app: AppConfig, say: Say, weights: str) -> WarmResult:
    with run.session(app, say) as session:
        reports: list[StartReport] = []
        for label in ("compile", "verify"):
            fleet = session.fleet(app, label)
            reports += fleet.start()
            fleet.stop()
            if reports[0].receipt.outcome in _LOADED:
                say("warm", "the store has it already")
                break
    return WarmResult(app.model.name, reports[0], reports[1] if len(reports) > 1 else None, weights)
