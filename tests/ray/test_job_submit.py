"""`ray job submit` against a cluster that runs: success, failure, stop, and the same id twice."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
RAY = str(Path(sys.executable).with_name("ray"))
FAKE = "engine=fake model=tiny_llama graph_cache=per_run cluster=existing"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A head node on loopback, as an operator starts one; yields the environment of who submits to it."""
    state = tmp_path_factory.mktemp("state")
    gcs, dashboard = free_port(), free_port()
    sessions = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # short, for sockets; and not a user's own "current cluster"
    environment = {
        **os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "ab" * 32,
            "ORCHESTRATOR_HOME": str(state), "TMPDIR": str(state),
        "RAY_TMPDIR": sessions, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }  # fmt: skip
    environment.pop("RAY_ADDRESS", None)
    command = [
        RAY, "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={gcs}", "--num-cpus=4",
        "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", "--disable-usage-stats",
    ]  # fmt: skip
    with (state / "head.log").open("w") as log:
        head = subprocess.Popen(command, env=environment, stdout=log, stderr=log, process_group=0)
    try:
        deadline = time.monotonic() + 60
        while not _listens(dashboard):
            assert head.poll() is None, (state / "head.log").read_text()[-2000:]
            assert time.monotonic() < deadline
            time.sleep(0.5)
        yield {**environment, "RAY_ADDRESS": f"http://127.0.0.1:{dashboard}", "STATE": str(state)}
    finally:
        family = [psutil.Process(head.pid), *psutil.Process(head.pid).children(recursive=True)]
        for process in family:
            process.terminate()
        _, alive = psutil.wait_procs(family, timeout=15)
        for process in alive:
            process.kill()
        shutil.rmtree(sessions, ignore_errors=True)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def submit(
    cluster: dict[str, str], name: str, overrides: str, *flags: str, job: str = "run", base: str = FAKE
) -> subprocess.CompletedProcess[str]:
    entry = f"{sys.executable} jobs/{job}.py {base} {overrides}"
    command = [RAY, "job", "submit", "--working-dir", ".", "--submission-id", name, *flags, "--", *entry.split()]
    return subprocess.run(command, cwd=ROOT, env=cluster, capture_output=True, text=True, timeout=180, check=False)


def status(cluster: dict[str, str], name: str) -> str:
    command = [RAY, "job", "status", name]
    done = subprocess.run(command, env=cluster, capture_output=True, text=True, timeout=60, check=False)
    said = done.stdout.lower()
    return next((s for s in ("succeeded", "failed", "stopped", "running", "pending") if s in said), said).upper()


def test_a_job_that_succeeds(cluster: dict[str, str]) -> None:
    done = submit(cluster, "good", "")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert '"second_replica": "hit"' in done.stdout
    assert status(cluster, "good") == "SUCCEEDED"


def test_a_job_that_fails_says_why(cluster: dict[str, str]) -> None:
    done = submit(cluster, "bad", "+engine.extra.fake_fail=start")
    assert done.returncode != 0
    assert "out of fake memory" in done.stdout
    assert status(cluster, "bad") == "FAILED"


def test_a_second_submission_of_an_id_is_refused_and_harmless(cluster: dict[str, str]) -> None:
    submit(cluster, "twice", "replicas=1")
    again = submit(cluster, "twice", "replicas=1")
    assert again.returncode != 0
    assert status(cluster, "twice") == "SUCCEEDED"


def test_a_stopped_job_leaves_nothing(cluster: dict[str, str]) -> None:
    submit(cluster, "long", "+engine.extra.fake_compile_s=100 engine.start_timeout_s=200", "--no-wait")
    scratch = Path(cluster["STATE"])
    deadline = time.monotonic() + 60
    while not list(scratch.glob("orchestrator-*/*/replica-0/events.jsonl")):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    subprocess.run([RAY, "job", "stop", "long"], env=cluster, capture_output=True, timeout=90, check=False)
    while status(cluster, "long") not in ("STOPPED", "FAILED"):
        assert time.monotonic() < deadline + 60
        time.sleep(0.5)
    while any("ray::Replica" in " ".join(p.info["cmdline"] or ()) for p in psutil.process_iter(["cmdline"])):
        assert time.monotonic() < deadline + 60
        time.sleep(0.2)
    assert "out" in submit(cluster, "after", "replicas=4 +engine.extra.fake_fail=start").stdout  # its CPUs are free


def test_a_sweep_whose_outputs_go_to_shared_storage(cluster: dict[str, str]) -> None:
    target = Path(cluster["STATE"]) / "shared"
    done = submit(cluster, "sweep", f"replicas=1,2 upload={target}", job="sweep", base=f"-m {FAKE}")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert status(cluster, "sweep") == "SUCCEEDED"
    (summary,) = Path(cluster["STATE"]).glob("shared/*/*/sweep.json")
    assert [cell["ok"] for cell in json.loads(summary.read_text())["cells"]] == [True, True]
    assert len(list(summary.parent.glob("*/report.html"))) == 2


def test_a_warm_job(cluster: dict[str, str]) -> None:
    base = "engine=fake model=tiny_llama cluster=existing +engine.extra.fake_code=new"
    done = submit(cluster, "warm", "", job="warm", base=base)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert '"outcomes": ["compiled", "hit"]' in done.stdout


def test_the_upload_is_what_nodes_need_and_small(cluster: dict[str, str]) -> None:
    session = Path(cluster["RAY_TMPDIR"]) / "ray" / "session_latest"
    (sent,) = session.glob("runtime_resources/working_dir_files/_ray_pkg_*/")
    names = {p.name for p in sent.iterdir()} - {"outputs", "multirun"}  # of the jobs themselves
    assert {"orchestrator", "conf", "jobs", "pyproject.toml"} <= names
    assert not names & {".git", ".venv", "tests", "docs", "requirements-cpu.lock"}
    files = [p for name in names for p in [sent / name, *(sent / name).rglob("*")] if p.is_file()]
    assert sum(p.stat().st_size for p in files if "__pycache__" not in p.parts) < 1 << 20
