"""When cells may run side by side, and what a sweeper that optimises is told."""

from __future__ import annotations

import math
import os
import threading
from dataclasses import fields

import pytest
import yaml

from orchestrator.cli import suite, sweep
from orchestrator.cli.jobs import TABLE
from orchestrator.config import CONF, SuiteEntry, SweepConfig
from orchestrator.errors import ConfigError
from tests.waiting import HANG_S


@pytest.mark.parametrize(
    ("job", "overrides", "said"),
    [
        ("bench", ["sweep.parallel=2"], "Benchmarks side by side"),
        ("run", ["sweep.parallel=2", "engine=gpu"], "share its GPUs"),
        ("run", ["sweep.parallel=1000"], "do not each find a core"),
        ("run", ["sweep.parallel=2", "sweep.objective=ttft_s"], "waits for each cell"),
    ],
)
def test_cells_that_would_disturb_each_other_are_refused(make_app, job: str, overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        sweep.check_parallel(TABLE[job], make_app(*overrides))


def test_a_sweeps_own_settings_are_in_no_cells_name() -> None:
    """Else `sweep.resume=true` would look in other folders, where hydra.sweep.subdir is hydra.job.override_dirname."""
    hydra = yaml.safe_load((CONF / "config.yaml").read_text())["hydra"]
    own = {f"sweep.{field.name}" for field in fields(SweepConfig)}
    assert set(hydra["job"]["config"]["override_dirname"]["exclude_keys"]) == own | {"upload"}


def test_cells_of_a_cluster_are_kept_apart_by_it(make_app) -> None:
    sweep.check_parallel(TABLE["run"], make_app("sweep.parallel=64", "cluster=existing", "engine=gpu"))


def cores_of_a_busy_thread(together: threading.Barrier) -> set[int]:
    together.wait(HANG_S)  # so that no thread takes two
    return os.sched_getaffinity(0)


def test_threads_have_cores_of_their_own() -> None:
    cores = os.sched_getaffinity(0)
    parallel = min(2, len(cores))
    together = threading.Barrier(parallel)
    with sweep.pool(parallel, apart=True) as pool:
        futures = [pool.submit(cores_of_a_busy_thread, together) for _ in range(parallel)]
        found = [future.result() for future in futures]
    assert set().union(*found) == cores
    assert sum(map(len, found)) == len(cores)
    assert os.sched_getaffinity(0) == cores


def test_the_objective() -> None:
    assert sweep.value({"ok": True, "first_token_s": {"second": 3}}, "first_token_s.second") == 3.0
    assert math.isnan(sweep.value({"ok": False, "error": "x"}, "first_token_s.second"))
    with pytest.raises(ConfigError, match="no figure 'nonsense'"):
        sweep.value({"ok": True}, "nonsense")


def entries(*lines: tuple[int, str]) -> list[SuiteEntry]:
    return [SuiteEntry(text.split(), gpus) for gpus, text in lines]


@pytest.mark.parametrize(("gpus", "most"), [(0, "1"), (1, "1"), (2, "2"), (3, "2"), (7, "4"), (8, "8")])
def test_a_suite_takes_as_many_gpus_as_tensor_parallelism_can(gpus: int, most: str) -> None:
    (entry,) = suite.planned(entries((1, "bench=depth engine.tensor_parallel_size={gpus}")), {}, gpus, True)
    assert entry.run == ["bench=depth", f"engine.tensor_parallel_size={most}"]


def test_a_suite_without_the_hub_takes_shapes_and_runs_nothing_twice() -> None:
    wanted = entries((1, "bench=startup model=a"), (1, "bench=startup model=b"), (2, "bench=startup model=shape_a"))
    assert len(suite.planned(wanted, {"a": "shape_a"}, 1, True)) == 3
    found = suite.planned(wanted, {"a": "shape_a"}, 1, False)
    assert [entry.run[1] for entry in found] == ["model=shape_a", "model=b"]


def test_every_entry_of_the_suites_is_a_configuration(make_app) -> None:
    for name in ("all", "gpu"):
        found = make_app(f"bench={name}").bench
        for entry in suite.planned(found.suite, found.offline, 8, online=False):
            words = [f"graph_cache.store={name}" if word == "graph_cache=per_run" else word for word in entry.run]
            assert make_app(*words).bench.kind.value != "all"
