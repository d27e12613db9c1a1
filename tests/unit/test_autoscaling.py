"""The policy that looks ahead: periods, starts, and a simulated service under it and under Ray Serve's own."""

from __future__ import annotations

import math
import random
import subprocess
import sys
from types import SimpleNamespace

import pytest
from ray.serve.autoscaling_policy import default_autoscaling_policy
from ray.serve.config import AutoscalingConfig

from orchestrator.bench.simulator import service
from orchestrator.bench.simulator.service import Replicas, simulate
from orchestrator.bench.simulator.traces import Trace, traces
from orchestrator.serve import app as application
from orchestrator.serve.autoscaling import AheadPolicy, History

CONFIG = AutoscalingConfig(
    min_replicas=1, max_replicas=40, target_ongoing_requests=6, upscale_delay_s=5, downscale_delay_s=120
)
WAVES = Trace("waves", 7200, 6.0, lambda at: 6.0 if at % 900 >= 450 else 1.0)
STEADY = Trace("steady", 7200, 6.0, lambda at: 6.0)


def history(load, seconds: float, seed: int = 0) -> History:
    draw, found = random.Random(seed), History(5.0, 2880)
    for now in range(1, int(seconds)):
        found.add(now, max(0.0, draw.gauss(load(now), math.sqrt(load(now)) / 2)))
    found.find_period()
    return found


@pytest.mark.parametrize("period", [120, 600, 1800])
@pytest.mark.parametrize("shape", ["wave", "square", "spike"])
def test_what_repeats_is_found(period: int, shape: str) -> None:
    loads = {
        "wave": lambda at: 30 + 25 * math.sin(2 * math.pi * at / period),
        "square": lambda at: 40.0 if at % period < period / 2 else 5.0,
        "spike": lambda at: 60.0 if at % period < period / 6 else 10.0,
    }
    found = history(loads[shape], 5 * period)
    assert abs(found.period * 5 - period) <= max(10, 0.02 * period)
    expected = max(loads[shape](5 * period + at) for at in range(60))
    assert found.before(0.0, 60.0) == pytest.approx(expected, rel=0.25)
    assert found.before(0.0, 1.1 * period) is None  # a period says nothing of a time after it


@pytest.mark.parametrize("load", [lambda at: 30.0, lambda at: 5 + at / 100, lambda at: 0.0])
@pytest.mark.parametrize("seed", range(5))
def test_chance_and_growth_are_no_periods(load, seed: int) -> None:
    assert history(load, 7200, seed).period == 0


def test_two_whole_periods_are_needed() -> None:
    assert history(lambda at: 40.0 if at % 1200 < 600 else 5.0, 2000).period == 0


def asked(policy: AheadPolicy, now: float, load: float, running: int, target: int) -> float:
    ctx = SimpleNamespace(
        current_time=now, total_num_requests=load, current_num_replicas=running, target_num_replicas=target,
        config=CONFIG,
    )  # fmt: skip
    return policy(ctx)[0]


def test_the_starts_that_were_seen_count_instead_of_the_guess() -> None:
    policy = AheadPolicy(start_s=60.0)
    assert policy.start_s == 60.0
    for now, running, target in ((0, 1, 1), (1, 1, 2), (20, 1, 2), (34, 2, 2), (40, 2, 4), (45, 3, 4), (52, 4, 4)):
        asked(policy, now, 6.0, running, target)
    assert policy.start_s == 33.0  # the longest of 33 and 12
    for now, running, target in ((60, 4, 5), (70, 4, 4), (500, 4, 4)):  # given up
        asked(policy, now, 6.0, running, target)
    assert policy.start_s == 33.0


@pytest.mark.parametrize("start_s", [30.0, 120.0])
def test_square_waves_are_met_before_they_come(start_s: float) -> None:
    theirs = simulate(default_autoscaling_policy, CONFIG, WAVES, Replicas(start_s), 1)
    ours = simulate(AheadPolicy(start_s), CONFIG, WAVES, Replicas(start_s), 1)
    assert ours.requests == theirs.requests > 10_000
    assert ours.misses <= theirs.misses / 3
    assert ours.replica_s <= 1.05 * theirs.replica_s


@pytest.mark.parametrize("start_s", [30.0, 120.0])
def test_bursts_that_nobody_foresees_are_no_worse(start_s: float) -> None:
    (bursts,) = [trace for trace in traces(1) if not trace.foreseen]
    theirs = simulate(default_autoscaling_policy, CONFIG, bursts, Replicas(start_s), 1)
    ours = simulate(AheadPolicy(start_s), CONFIG, bursts, Replicas(start_s), 1)
    assert ours.misses <= 1.02 * theirs.misses


def test_an_even_load_keeps_its_replicas() -> None:
    theirs = simulate(default_autoscaling_policy, CONFIG, STEADY, Replicas(30.0), 1)
    ours = simulate(AheadPolicy(30.0), CONFIG, STEADY, Replicas(30.0), 1)
    assert ours.changes <= theirs.changes / 2


def test_the_simulator_counts_what_it_should() -> None:
    three = AutoscalingConfig(min_replicas=3, max_replicas=3, target_ongoing_requests=6)
    calm = simulate(default_autoscaling_policy, three, Trace("calm", 600, 1.0, lambda at: 1.0), Replicas(30.0), 1)
    assert (calm.misses, calm.replica_s, calm.changes) == (0, 1800.0, 0)
    none = AutoscalingConfig(min_replicas=0, max_replicas=1, target_ongoing_requests=6, downscale_delay_s=9999)
    late = simulate(default_autoscaling_policy, none, Trace("one", 600, 0.1, lambda at: 0.1), Replicas(30.0), 1)
    assert 1 <= late.misses < late.requests  # those that came before the first replica
    assert service.autoscaling_policy.time.__name__ == "time"  # the clock is the real one again


def test_a_service_is_given_the_policy_that_was_asked_for(make_app) -> None:
    def policy(*words: str) -> dict:
        app = make_app("model=tiny_llama", "engine=fake", *words)
        return application.llm_config(app, "/model").deployment_config["autoscaling_config"].get("policy", {})

    assert policy() == {}
    found = AutoscalingConfig(policy=policy("serve.autoscaling=ahead", "serve.start_s=12")).policy
    assert found.policy_kwargs == {"start_s": 12.0}
    assert found.get_policy().__name__ == "AheadPolicy"


def test_ray_serves_controller_needs_nothing_else_of_this_package(tmp_path) -> None:
    found = AutoscalingConfig(policy={"policy_function": f"{AheadPolicy.__module__}:AheadPolicy"}).policy
    (tmp_path / "policy").write_bytes(found.get_serialized_policy_def())
    program = (
        "import pickle, sys; sys.modules['orchestrator'] = None\n"
        f"print(pickle.load(open({str(tmp_path / 'policy')!r}, 'rb'))(start_s=7.0).start_s)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.stdout == "7.0\n", done.stderr
