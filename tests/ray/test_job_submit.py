"""`ray job submit` against a cluster that runs: success, failure, stop, and the same id twice."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.footprint import processes
from tests.ray import ray_nodes
from tests.ray.ray_nodes import RAY, START, flags, free_port, listens, patience
from tests.ray.test_jobs import PATIENT
from tests.unit.commands import ROOT
from tests.waiting import HANG_S, wait_for

PATIENCE = " ".join(PATIENT)
FAKE = f"engine=fake model=tiny_llama graph_cache=per_run cluster=existing {PATIENCE}"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A head node on loopback, as an operator starts one; yields the environment of who submits to it."""
    state = tmp_path_factory.mktemp("state")
    gcs, dashboard = free_port(), free_port()
    sessions = tempfile.mkdtemp(prefix="r-", dir="/tmp")  # short, for sockets; and not a user's own "current cluster"
    environment = {
        **os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "ab" * 32,
        "ORCHESTRATOR_HOME": str(state), "TMPDIR": str(state), **patience(),
        "RAY_TMPDIR": sessions, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }  # fmt: skip
    environment.pop("RAY_ADDRESS", None)
    checkout(state / "tree")
    command = [
        *START, "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={gcs}", "--num-cpus=4",
        "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", "--disable-usage-stats",
        *flags(head=True),
    ]  # fmt: skip
    with (state / "head.log").open("w") as log:
        head = subprocess.Popen(command, env=environment, stdout=log, stderr=log, process_group=0)
    try:
        wait_for(lambda: listens(dashboard) or head.poll() is not None)
        assert head.poll() is None, (state / "head.log").read_text()[-2000:]
        yield {**environment, "RAY_ADDRESS": f"http://127.0.0.1:{dashboard}", "STATE": str(state)}
    finally:
        ray_nodes.end(head)
        shutil.rmtree(sessions, ignore_errors=True)


def checkout(folder: Path) -> None:
    """A copy of this checkout, with what is there as a rule and is not to be uploaded, and nothing else."""
    grown = ("build", "dist", "outputs", "multirun")
    folders = [p for p in ROOT.iterdir() if p.is_dir() and not p.name.startswith(".") and p.name not in grown]
    for source in folders:
        shutil.copytree(source, folder / source.name, ignore=shutil.ignore_patterns("__pycache__"))
    for source in (p for p in ROOT.iterdir() if p.is_file()):
        shutil.copy(source, folder)
    for name in (".git", ".venv", ".hypothesis", *grown):
        (folder / name).mkdir()
        (folder / name / "large").write_bytes(os.urandom(1 << 20))


def submit(
    cluster: dict[str, str], name: str, overrides: str, *flags: str, job: str = "run", base: str = FAKE
) -> subprocess.CompletedProcess[str]:
    entry = f"{sys.executable} jobs/{job}.py {base} {overrides}"
    command = [RAY, "job", "submit", "--working-dir", ".", "--submission-id", name, *flags, "--", *entry.split()]
    return subprocess.run(
        command,
        cwd=f"{cluster['STATE']}/tree",
        env=cluster,
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )


def status(cluster: dict[str, str], name: str) -> str:
    """A job's status, by the interface that `ray job status` asks too."""
    headers = {"Authorization": f"Bearer {cluster['RAY_AUTH_TOKEN']}"}
    request = urllib.request.Request(f"{cluster['RAY_ADDRESS']}/api/jobs/{name}", headers=headers)
    with urllib.request.urlopen(request, timeout=HANG_S) as answer:
        return str(json.load(answer)["status"])


def test_a_job_that_succeeds_and_its_id_a_second_time(cluster: dict[str, str]) -> None:
    done = submit(cluster, "good", "")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert '"second_replica": "hit"' in done.stdout
    assert status(cluster, "good") == "SUCCEEDED"
    again = submit(cluster, "good", "replicas=1")
    assert again.returncode != 0  # refused, and harmless:
    assert status(cluster, "good") == "SUCCEEDED"


def test_a_job_that_fails_says_why(cluster: dict[str, str]) -> None:
    done = submit(cluster, "bad", "+engine.extra.fake_fail=start")
    assert done.returncode != 0
    assert "out of fake memory" in done.stdout
    assert status(cluster, "bad") == "FAILED"


def test_a_stopped_job_leaves_nothing(cluster: dict[str, str]) -> None:
    submit(cluster, "long", "+engine.extra.fake_hang=1", "--no-wait")
    scratch = Path(cluster["STATE"])
    wait_for(lambda: list(scratch.glob("orchestrator-*/*/replica-0-*/events.jsonl")), lambda: status(cluster, "long"))
    subprocess.run([RAY, "job", "stop", "long"], env=cluster, capture_output=True, timeout=HANG_S, check=False)
    wait_for(lambda: status(cluster, "long") in ("STOPPED", "FAILED"), lambda: status(cluster, "long"))
    wait_for(lambda: not processes("ray::Replica"))
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
    base = f"engine=fake model=tiny_llama cluster=existing +engine.extra.fake_code=new {PATIENCE}"
    done = submit(cluster, "warm", "", job="warm", base=base)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert '"outcomes": ["compiled", "hit"]' in done.stdout


def test_the_upload_is_what_nodes_need_and_small(cluster: dict[str, str]) -> None:
    session = Path(cluster["RAY_TMPDIR"]) / "ray" / "session_latest"
    (sent,) = session.glob("runtime_resources/working_dir_files/_ray_pkg_*/")
    names = {p.name for p in sent.iterdir()} - {"outputs", "multirun"}  # of the jobs themselves
    assert {"orchestrator", "conf", "jobs", "pyproject.toml"} <= names
    assert not names & {".git", ".venv", ".hypothesis", "build", "tests", "docs", "requirements-cpu.lock"}
    assert not list(sent.rglob("large"))
    files = [p for name in names for p in [sent / name, *(sent / name).rglob("*")] if p.is_file()]
    assert sum(p.stat().st_size for p in files if "__pycache__" not in p.parts) < 1 << 20
