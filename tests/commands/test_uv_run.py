"""Under `uv run` Ray's workers are what they are under plain Python: Ray would start each by `uv run` as well."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.commands import ROOT
from tests.waiting import HANG_S

JOB = """
import sys
from orchestrator.cli.hydra_app import HydraApp
from orchestrator.cli.jobs import Done, Job

def work(app, folder, progress):
    from ray._private.worker import _maybe_modify_runtime_env
    return Done({"ok": True, "workers": (_maybe_modify_runtime_env({}, False) or {}).get("py_executable", "python")})

sys.argv = ["job", "hydra.run.dir=" + sys.argv[1]]
HydraApp(Job("run", "a job", work, "run")).run()
"""
# What `uv run python …` is to its child: a process of this name and first word.
PARENT = "import subprocess, sys; subprocess.run([sys.argv[1], '-c', *sys.argv[2:]], check=True)"


@pytest.mark.parametrize(("variable", "workers"), [(None, "python"), ("1", "uv run")])
def test_workers_under_uv_run(variable: str | None, workers: str, tmp_path: Path) -> None:
    (tmp_path / "run").write_text(PARENT)
    env = {**os.environ, "PYTHONPATH": str(ROOT), **({"RAY_ENABLE_UV_RUN_RUNTIME_ENV": variable} if variable else {})}
    done = subprocess.run(
        ["uv", "run", sys.executable, JOB, str(tmp_path / "out")], executable=sys.executable, cwd=tmp_path, env=env,
        text=True, capture_output=True, timeout=HANG_S, check=False,
    )  # fmt: skip
    assert f'"workers": "{workers}' in done.stdout, done.stdout + done.stderr
