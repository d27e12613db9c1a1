"""A storage's keys in a URI are for the storage alone: nothing that people or files get to see has them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from rich.console import Console

from orchestrator import paths
from orchestrator.cli import main
from orchestrator.cli.exit import Ending
from orchestrator.cli.progress import Progress
from orchestrator.cluster import provenance
from orchestrator.runs import run

URI = "s3://key:secret@bucket/graphs?region=us-east-1"
HIDDEN = "s3://***@bucket/graphs?region=us-east-1"


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        (URI, HIDDEN),
        (f"neither {URI}, nor gs://token@other/x", f"neither {HIDDEN}, nor gs://***@other/x"),
        (json.dumps({"store": URI}), json.dumps({"store": HIDDEN})),
        ("s3://bucket/a@b", "s3://bucket/a@b"),
        ("s3://key:with/a/slash@bucket/x", "s3://***@bucket/x"),
        (r"upload=s3\://key\:secret@bucket", r"upload=s3\://***@bucket"),
        ('{"url": "http://host:80/v1", "by": "a@b"}', '{"url": "http://host:80/v1", "by": "a@b"}'),
        ("mail me@example.org about http://host:80/v1", "mail me@example.org about http://host:80/v1"),
    ],
)
def test_keys_are_left_out(text: str, seen: str) -> None:
    assert paths.shown(text) == seen


def test_a_jobs_end_has_none(capsys: pytest.CaptureFixture[str]) -> None:
    ending = Ending()
    ending.done({"ok": True, "output": URI})
    ending.failed(f"graph_cache.store={URI}: no answer", 1)
    ending.finish()
    out, err = capsys.readouterr()
    assert json.loads(out.removeprefix("RESULT "))["output"] == HIDDEN
    assert HIDDEN in err
    assert "secret" not in out + err


def test_a_result_has_none(make_app, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run._plain(make_app(f"graph_cache.store='{URI}'"))["graph_cache"]["store"] == HIDDEN
    monkeypatch.setattr(sys, "argv", ["jobs/run.py", f"graph_cache.store={URI}"])
    assert "secret" not in provenance.command()


def test_progress_has_none(tmp_path: Path) -> None:
    with Progress(console := Console(record=True, width=200), tmp_path / "log") as progress:
        progress.say("warm", f"to {URI}")
    assert "secret" not in console.export_text() + (tmp_path / "log").read_text()


def test_a_refused_store_is_told_without(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    where = ["--store", "s4://key:secret@bucket/x", "--key-file", str(tmp_path / "key")]
    assert main.main(["cache", *where, "ls"]) == 2
    err = capsys.readouterr().err
    assert "s4://***@bucket/x" in err
    assert "secret" not in err
