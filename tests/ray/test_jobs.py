"""One run as a shell sees it: exit codes, the RESULT line, reports, Ctrl-C, and nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess

import pytest

from tests.footprint import Footprint
from tests.unit.commands import check_schema, finish, start
from tests.waiting import HANG_S, wait_for

PATIENT = [
    f"engine.start_timeout_s={HANG_S:g}", f"cluster.placement_timeout_s={HANG_S:g}", f"graph_cache.lease_s={HANG_S:g}",
    f"graph_cache.wait_timeout_s={HANG_S:g}",
]  # fmt: skip
FAKE = ["engine=fake", "model=tiny_llama", "graph_cache=per_run", "cluster.num_cpus=2", *PATIENT]
pytestmark = pytest.mark.usefixtures("no_ray")


def job(name: str, *overrides: str, mine: Footprint) -> subprocess.Popen[str]:
    env = mine.environment(ORCHESTRATOR_HOME=str(mine.folder), RAY_TMPDIR=os.environ["RAY_TMPDIR"])
    return start(f"jobs/{name}.py", *overrides, env=env)


def test_a_run_shares_graphs_reports_and_leaves_nothing(mine: Footprint) -> None:
    out = mine.folder / "out"
    code, result, err = finish(job("run", *FAKE, f"hydra.run.dir={out}", mine=mine))
    assert code == 0, err
    assert (result["ok"], result["same_tokens"], result["second_replica"]) == (True, True, "hit")
    data = json.loads((out / "result.json").read_text())
    assert [r["receipt"]["outcome"] for r in data["replicas"]] == ["compiled", "hit"]
    check_schema("run", data)
    page = (out / "report.html").read_text()
    assert "<h1>" in page
    assert "replica-1" in page
    assert "http" not in page.replace("http://www.w3.org", "")  # stands alone
    mine.check()


def test_ctrl_c_leaves_nothing(mine: Footprint) -> None:
    hangs = ["+engine.extra.fake_hang=1", f"hydra.run.dir={mine.folder}/out"]
    process = job("run", *FAKE, *hangs, mine=mine)
    wait_for(lambda: _starts(mine) or process.poll() is not None)
    os.killpg(process.pid, signal.SIGINT)
    code, result, err = finish(process)
    assert code == 130, (result, err[-3000:])
    assert result == {"ok": False, "error": "interrupted"}
    mine.check()


def _starts(mine: Footprint) -> bool:
    """Has a replica asked the graph cache? Its engine starts then."""
    logs = mine.folder.glob("orchestrator-*/*/replica-0-*/events.jsonl")
    return any('"cache lookup"' in log.read_text() for log in logs)


def test_a_failed_start_exits_1_with_its_cause(mine: Footprint) -> None:
    fails = ["+engine.extra.fake_fail=start", f"hydra.run.dir={mine.folder}/out"]
    code, result, err = finish(job("run", *FAKE, *fails, mine=mine))
    assert code == 1
    assert "out of fake memory" in result["error"]
    assert "error: replica-0: the engine did not start" in err
    mine.check()


def test_a_report_that_cannot_be_written_keeps_the_figures(mine: Footprint) -> None:
    (mine.folder / "out" / "report.html").mkdir(parents=True)
    code, result, err = finish(job("run", *FAKE, "replicas=1", f"hydra.run.dir={mine.folder}/out", mine=mine))
    assert (code, result["ok"], result["same_tokens"]) == (1, False, True)
    assert "IsADirectoryError" in result["error"]
    assert "Traceback" not in err
    mine.check()


def test_an_unreachable_cluster_is_one_line(mine: Footprint) -> None:
    nowhere = ["cluster=existing", "cluster.address=127.0.0.1:1", f"hydra.run.dir={mine.folder}/out"]
    code, result, _ = finish(job("run", *FAKE, *nowhere, mine=mine))
    assert code == 2
    assert "No Ray cluster at 127.0.0.1:1" in result["error"]
