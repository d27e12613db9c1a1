"""A command that needs neither Ray nor vLLM does not wait for their imports."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.cli.jobs import TABLE
from tests.unit.commands import run

HEAVY = {"vllm", "ray", "torch"}


def imported(trace: str) -> set[str]:
    """Packages in what `python -X importtime` has said."""
    lines = [line for line in trace.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("jobs/batch.py batch.url=http://127.0.0.1:9 batch.input=missing.jsonl hydra.run.dir={out}", 2),
        ("jobs/run.py --help", 0),
        ("jobs/run.py replicas=0 hydra.run.dir={out}", 2),
        ("-m orchestrator cache ls", 0),
        ("jobs/report.py --help", 0),
    ],
)
def test_what_starts_nothing_imports_nothing_heavy(words: str, code: int, tmp_path: Path) -> None:
    state = {"ORCHESTRATOR_HOME": str(tmp_path)}
    done = run("-X", "importtime", *words.format(out=tmp_path / "out").split(), **state)
    assert done.returncode == code, done.stdout
    found = imported(done.stderr)
    assert "orchestrator" in found
    assert not found & HEAVY


def test_the_trace_would_show_it() -> None:
    assert "ray" in imported(run("-X", "importtime", "-c", "import ray.exceptions").stderr)


def test_help_lists_every_job() -> None:
    done = run("-m", "orchestrator", "--help")
    assert done.returncode == 0
    listed = {line.split()[0] for line in done.stdout.splitlines() if line.startswith("    ")}
    assert set(TABLE) <= listed
    assert {path.stem for path in Path("jobs").glob("*.py")} == set(TABLE) - {"cache"}
