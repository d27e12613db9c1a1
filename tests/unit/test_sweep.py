"""When cells may run side by side, and what a sweeper that optimises is told."""

from __future__ import annotations

import math
import os
import threading
from dataclasses import fields

import pytest
import yaml

from orchestrator.cli import sweep
from orchestrator.cli.jobs import TABLE
from orchestrator.config import CONF, SweepConfig
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
