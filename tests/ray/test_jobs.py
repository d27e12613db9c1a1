"""The jobs as a shell sees them: exit codes, the RESULT line, reports, sweeps, Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import psutil
import yaml

ROOT = Path(__file__).resolve().parents[2]
FAKE = ["engine=fake", "model=tiny_llama", "graph_cache=per_run", "cluster.num_cpus=2"]


def start(job: str, *overrides: str, state: Path) -> subprocess.Popen[str]:
    command = [sys.executable, f"jobs/{job}.py", *overrides]
    # scratch folders where the test can see them; Ray's stay where its socket paths fit
    env = {**os.environ, "ORCHESTRATOR_HOME": str(state), "TMPDIR": str(state), "RAY_TMPDIR": "/tmp"}
    return subprocess.Popen(
        command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def finish(process: subprocess.Popen[str], timeout: float = 120) -> tuple[int, dict, str]:
    out, err = process.communicate(timeout=timeout)
    last = out.strip().splitlines()[-1]
    assert last.startswith("RESULT "), out + err
    return process.returncode, json.loads(last.removeprefix("RESULT ")), err


def check_schema(name: str, data: dict) -> None:
    jsonschema.validate(data, json.loads((ROOT / "docs" / "schemas" / f"{name}.json").read_text()))


def session_is_empty(process: subprocess.Popen[str]) -> bool:
    """No process of the job's session is left; Ray's daemons get a few seconds to go."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        left = [p for p in psutil.process_iter(["cmdline"]) if _of(p, process.pid)]
        if not left:
            return True
        time.sleep(0.2)
    raise AssertionError([" ".join(p.info["cmdline"])[:200] for p in left])


def _of(process: psutil.Process, session: int) -> bool:
    try:
        return os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, ProcessLookupError):
        return False


def test_a_run_shares_graphs_reports_and_leaves_nothing(tmp_path: Path) -> None:
    before = {p.pid for p in psutil.process_iter()}
    process = start("run", *FAKE, f"hydra.run.dir={tmp_path}/out", state=tmp_path)
    code, result, err = finish(process)
    assert code == 0, err
    assert (result["ok"], result["same_tokens"], result["second_replica"]) == (True, True, "hit")
    data = json.loads((tmp_path / "out" / "result.json").read_text())
    assert [r["receipt"]["outcome"] for r in data["replicas"]] == ["compiled", "hit"]
    check_schema("run", data)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<h1>" in page
    assert "replica-1" in page
    assert "http" not in page.replace("http://www.w3.org", "")  # stands alone
    assert session_is_empty(process)
    ours = [p for p in psutil.process_iter(["cmdline"]) if p.pid not in before and _is_ray(p)]
    assert not ours


def _is_ray(process: psutil.Process) -> bool:
    return any(word in " ".join(process.info["cmdline"] or []) for word in ("raylet", "gcs_server", "ray::"))


def test_a_sweep_goes_on_after_a_failure_and_says_so(tmp_path: Path) -> None:
    cells = ["-m", *FAKE, "fast_cold_start=true,false", "engine.tensor_parallel_size=1,3"]
    code, result, err = finish(start("sweep", *cells, f"hydra.sweep.dir={tmp_path}/out", state=tmp_path))
    assert code != 0
    assert [cell["ok"] for cell in result["cells"]] == [True, False, True, False]
    assert "does not divide tiny_llama's 4 attention heads" in result["cells"][1]["error"]
    assert result["cells"][0]["tokens_as_stock"] is True
    assert (tmp_path / "out" / "report.html").is_file()
    check_schema("sweep", json.loads((tmp_path / "out" / "sweep.json").read_text()))
    assert "failed:" in err


def test_cells_in_parallel_have_cores_of_their_own(tmp_path: Path) -> None:
    cells = ["-m", *FAKE, "replicas=1", "+engine.extra.fake_compile_s=3,3.5", "sweep.parallel=2"]
    process = start("sweep", *cells, f"hydra.sweep.dir={tmp_path}/out", state=tmp_path)
    seen: set[frozenset[int]] = set()
    together = 0
    while process.poll() is None:
        found = [p for p in children(process.pid) if "jobs/run.py" in line(p)]
        together = max(together, len(found))
        seen |= {frozenset(p.cpu_affinity()) for p in found if len(found) == 2}
        time.sleep(0.2)
    code, result, err = finish(process)
    assert code == 0, err
    assert [cell["ok"] for cell in result["cells"]] == [True, True]
    assert together == 2
    one, other = seen
    assert not one & other


def test_an_optimising_sweeper_gets_its_figure(tmp_path: Path) -> None:
    cells = ["-m", "+experiment=optuna", *FAKE, "hydra.sweeper.n_trials=3", f"hydra.sweep.dir={tmp_path}/out"]
    code, result, err = finish(start("sweep", *cells, state=tmp_path), timeout=240)
    assert code == 0, err
    seconds = [cell["first_token_s"]["second"] for cell in result["cells"]]
    assert len(seconds) == 3
    best = yaml.safe_load((tmp_path / "out" / "optimization_results.yaml").read_text())
    assert best["best_value"] == min(seconds)


def test_a_suite_goes_on_after_a_failure_and_makes_one_page(tmp_path: Path) -> None:
    suite = ["bench=fake_suite", f"hydra.searchpath=[file://{ROOT}/tests/conf]", f"hydra.run.dir={tmp_path}/out"]
    code, result, err = finish(start("bench", *suite, state=tmp_path), timeout=240)
    assert code == 1, err
    first, skipped, wrong = result["benches"]
    assert first["ok"]
    assert "needs 64 GPUs" in skipped["skipped"]
    assert "bench=depth varies" in wrong["error"]
    data = json.loads((tmp_path / "out" / "suite.json").read_text())
    (bench,) = data["results"]
    check_schema("bench", bench)
    assert [row["layers"] for row in bench["rows"]] == [2, 4]
    assert "<svg" in (tmp_path / "out" / "report.html").read_text()
    assert "bench=depth" in (tmp_path / "out" / "RESULTS.md").read_text()


def test_large_clusters_are_simulated_from_what_is_measured(tmp_path: Path) -> None:
    bench = ["bench=simulate", *FAKE, "bench.rounds=1", "bench.nodes=[2,200]", f"hydra.run.dir={tmp_path}/out"]
    code, _, err = finish(start("bench", *bench, state=tmp_path), timeout=240)
    assert code in (0, 1), err  # how near the model comes is a timing
    data = json.loads((tmp_path / "out" / "bench.json").read_text())
    check_schema("bench", data)
    checks = [row for row in data["rows"] if row["start"] == "checked"]
    assert [row["compiled"] for row in checks] == [1, 1, 1]  # single flight, for 2, 4 and 8 replicas at once
    assert all(row["measured_s"] > 0 and row["simulated_s"] > 0 for row in checks)
    assert {row["without"] for row in data["rows"]} == {"-", "placement", "registry", "network", "install", "turns"}
    assert min(data["summary"]["constants_ms"].values()) >= 0


def children(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children()
    except psutil.Error:
        return []


def line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it has just ended
        return ""


def test_what_a_sweep_lost_is_run_again_and_nothing_else(tmp_path: Path) -> None:
    """Five cells: one raises, one is killed; resumed with what made it fail mended, only those two run."""
    slow = "+engine.extra.fake_compile_s=0.1,0.2,0.3,0.4,3.5"
    cells = ["-m", *FAKE, "replicas=1", slow, f"hydra.sweep.dir={tmp_path}/out"]
    process = start("sweep", *cells, "engine.start_timeout_s=3", state=tmp_path)
    victim = None
    while process.poll() is None and victim is None:  # the third cell's own process
        victim = next((p for p in psutil.Process(process.pid).children() if "out/2" in line(p)), None)
        time.sleep(0.05)
    time.sleep(2.0)
    victim.kill()
    code, result, err = finish(process)
    assert code == 1
    assert [cell["ok"] for cell in result["cells"]] == [True, True, False, True, False], err[-3000:]
    assert result["cells"][2]["error"] == "its process was killed by SIGKILL"
    assert "engine.start_timeout_s=3" in result["cells"][4]["error"]
    assert "failed:" in err
    before = [(tmp_path / "out" / str(i) / "cell.json").read_text() for i in range(5)]

    again = start("sweep", *cells, "engine.start_timeout_s=3", "sweep.resume=true", state=tmp_path)
    code, result, err = finish(again)
    assert code == 1  # the last one cannot succeed
    assert [cell["ok"] for cell in result["cells"]] == [True, True, True, True, False]
    after = [(tmp_path / "out" / str(i) / "cell.json").read_text() for i in range(5)]
    assert [a == b for a, b in zip(after, before, strict=True)][:4] == [True, True, False, True]


def test_a_cell_has_a_deadline_and_retries(tmp_path: Path) -> None:
    cells = ["-m", *FAKE, "replicas=1", "+engine.extra.fake_compile_s=0.1,600", f"hydra.sweep.dir={tmp_path}/out"]
    sweep = start("sweep", *cells, "sweep.deadline_s=30", "sweep.retries=1", state=tmp_path)
    code, result, _ = finish(sweep, timeout=300)
    assert code == 1
    assert [cell["ok"] for cell in result["cells"]] == [True, False]
    assert result["cells"][1]["error"] == "not done within sweep.deadline_s=30"
    assert json.loads((tmp_path / "out" / "1" / "cell.json").read_text())["attempts"] == 2


def test_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    process = start("run", *FAKE, f"hydra.run.dir={tmp_path}/out", "+engine.extra.fake_compile_s=60", state=tmp_path)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("orchestrator-*/*/replica-0/events.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.2)
    time.sleep(1)
    os.killpg(process.pid, signal.SIGINT)
    code, result, err = finish(process, timeout=60)
    assert code == 130, (result, err[-3000:])
    assert result == {"ok": False, "error": "interrupted"}
    assert not list(tmp_path.glob("orchestrator-*"))
    assert session_is_empty(process)


def test_a_failed_start_exits_1_with_its_cause(tmp_path: Path) -> None:
    process = start("run", *FAKE, f"hydra.run.dir={tmp_path}/out", "+engine.extra.fake_fail=start", state=tmp_path)
    code, result, err = finish(process)
    assert code == 1
    assert "out of fake memory" in result["error"]
    assert "error: replica-0: the engine did not start" in err
    assert session_is_empty(process)


def test_an_unreachable_cluster_is_one_line(tmp_path: Path) -> None:
    process = start("run", *FAKE, "cluster=existing", "cluster.address=127.0.0.1:1", state=tmp_path)
    code, result, _ = finish(process)
    assert code == 2
    assert "No Ray cluster at 127.0.0.1:1" in result["error"]
