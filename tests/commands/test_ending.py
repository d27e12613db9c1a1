"""How a job ends, as a shell sees it: one RESULT line, the last on stdout, and one exit code, whatever fails last."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.unit.batch_service import Service, hang, line, page, running
from tests.unit.commands import start
from tests.unit.test_imports import HEAVY, imported
from tests.waiting import HANG_S, wait_for

NOWHERE = "/proc/nowhere"  # a storage that opens, and cannot be written
SLOW_UPLOAD = """
import sys, time
from orchestrator.cli import main, upload

def slow(folder, uri):
    print("uploading", file=sys.stderr, flush=True)
    time.sleep(1e6)

upload.upload = slow
sys.exit(main.main(sys.argv[1:]))
"""
Batch = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def batch(tmp_path: Path) -> Iterator[Batch]:
    """Starts a batch of one request, against a service that answers: a job that needs neither Ray nor vLLM."""
    (tmp_path / "in.jsonl").write_text(line("a"))
    given = [f"batch.input={tmp_path}/in.jsonl"]
    env = {**os.environ, "ORCHESTRATOR_HOME": str(tmp_path)}
    env.pop("HYDRA_FULL_ERROR", None)

    def begin(*words: str, program: tuple[str, ...] = ("-m", "orchestrator"), **more: str) -> subprocess.Popen[str]:
        own = [f"hydra.run.dir={tmp_path}/out/day/time", *given, *words]
        return start(*program, "batch", *own, env={**env, **more}, piped=True)

    with running() as server:
        given.append(f"batch.url=http://127.0.0.1:{server.server_port}")
        yield begin


def ended(process: subprocess.Popen[str]) -> tuple[int, dict, str]:
    """Exit code, the one RESULT line, and standard error, of a job that printed nothing after that line."""
    out, err = process.communicate(timeout=HANG_S)
    lines = out.splitlines()
    assert [text.startswith("RESULT ") for text in lines].count(True) == 1, out + err
    assert lines[-1].startswith("RESULT "), out
    assert "Traceback" not in err
    assert "Error executing job" not in err
    return process.returncode, json.loads(lines[-1].removeprefix("RESULT ")), err


def test_all_well(batch: Batch, tmp_path: Path) -> None:
    code, result, err = ended(batch(f"upload={tmp_path}/far"))
    assert (code, result["ok"], result["answered"]) == (0, True, 1), err
    assert (tmp_path / "far" / "day" / "time").is_dir()


def test_what_a_job_told_is_kept_as_it_goes(tmp_path: Path) -> None:
    """A benchmark that is killed has lost its report, and not the figures that it had."""
    folder = tmp_path / "out"
    program = (
        "import os, signal\n"
        "from rich.console import Console\n"
        "from pathlib import Path\n"
        "from orchestrator.cli.progress import Progress\n"
        f"with Progress(Console(stderr=True), Path({str(folder)!r})) as progress:\n"
        "    progress.say('bench', 'round 0, stock_cold: 82.0 s')\n"
        "    progress.say('bench', 'round 0, stock_cold: 82.0 s')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", program], timeout=HANG_S, check=False)
    (kept,) = folder.read_text().splitlines()
    assert kept.endswith(" s bench round 0, stock_cold: 82.0 s")


def test_the_answers_of_a_batch_are_uploaded_and_a_second_submission_goes_on_from_there(
    batch: Batch, tmp_path: Path
) -> None:
    """Also where it has nothing but the input, as a job on another node."""
    answers, far = tmp_path / "in.answers.jsonl", f"upload={tmp_path}/far"
    (tmp_path / "in.jsonl").write_text(line("a") + line("busy-1"))
    code, result, err = ended(batch(far, "batch.retries=0"))
    assert (code, result["answered"]) == (1, 1), err
    uploaded = tmp_path / "far" / "day" / "time" / answers.name
    assert (uploaded.is_symlink(), uploaded.read_text()) == (False, answers.read_text())
    answers.unlink()
    code, result, err = ended(batch(far, f"hydra.run.dir={tmp_path}/out/day/later"))
    assert (code, result["before"], result["answered"]) == (0, 1, 2), err
    assert Service.asked == {"a": 1, "busy-1": 2}
    assert answers.read_text() == (tmp_path / "far" / "day" / "later" / answers.name).read_text()
    assert answers.read_text().startswith(uploaded.read_text())
    answers.unlink()
    (tmp_path / "in.jsonl").write_text(line("a", temperature=1))  # another input, with the same names
    code, result, err = ended(batch(far, f"hydra.run.dir={tmp_path}/out/day/other"))
    assert (code, result["before"], result["answered"]) == (0, 0, 1), err


def test_a_batch_is_cancelled_with_ctrl_c_and_goes_on_later(batch: Batch, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text("".join(map(line, "abc")))
    Service.plays = {"c": [hang]}
    answers = tmp_path / "in.answers.jsonl"
    process = batch()
    wait_for(lambda: answers.is_file() and answers.read_bytes().count(b"\n") == 2 and Service.asked["c"])
    os.kill(process.pid, signal.SIGINT)
    code, result, err = ended(process)
    assert (code, result["error"], err.count("error: ")) == (130, "interrupted", 1)
    Service.plays = {}
    code, result, err = ended(batch())
    assert (code, result["before"], result["answered"]) == (0, 2, 3), err


def test_what_a_service_says_is_no_markup(batch: Batch) -> None:
    Service.plays = {"a": [page(503)]}
    code, result, err = ended(batch("batch.retries=0"))
    assert code == 1
    assert "[bold]sign in[/nothing]" in result["error"]
    assert "[bold]sign in[/nothing]" in " ".join(err.split())


def test_a_batch_for_a_service_elsewhere_imports_nothing_heavy(batch: Batch) -> None:
    code, _, err = ended(batch(program=("-X", "importtime", "-m", "orchestrator")))
    assert code == 0
    assert "orchestrator" in imported(err)
    assert not imported(err) & HEAVY


def test_what_is_wrong_with_a_file_is_told_before_the_service_is_asked(batch: Batch, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text(line("a") + "{\n")
    code, result, err = ended(batch())
    assert (code, err.count("error: ")) == (2, 1)
    assert "line 2" in result["error"]
    assert not Service.asked


def test_a_failed_upload_fails_a_job_that_was_well_and_keeps_its_figures(batch: Batch) -> None:
    code, result, err = ended(batch(f"upload={NOWHERE}"))
    assert (code, result["ok"], result["answered"]) == (1, False, 1)
    assert "was not uploaded" in result["error"]
    assert err.count("error: ") == 1


def test_a_failed_upload_hides_no_earlier_error(batch: Batch) -> None:
    code, result, err = ended(batch("batch.input=missing.jsonl", f"upload={NOWHERE}"))
    assert (code, result["ok"]) == (2, False)
    assert "missing.jsonl" in result["error"]
    assert "was not uploaded" in result["error"]
    assert err.count("error: ") == 2


def test_interrupted_while_it_uploads(batch: Batch, tmp_path: Path) -> None:
    process = batch(f"upload={tmp_path}/far", program=("-c", SLOW_UPLOAD))
    assert process.stderr is not None
    while (text := process.stderr.readline()) and text != "uploading\n":
        pass
    os.kill(process.pid, signal.SIGINT)
    code, result, _ = ended(process)
    assert (code, result["ok"], result["answered"], result["error"]) == (130, False, 1, "interrupted")


def test_a_report_that_cannot_be_written_keeps_the_figures(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "sweep.json").mkdir(parents=True)
    words = ["-m", "engine=fake", "model=tiny_llama", f"hydra.sweep.dir={out}", "+engine.extra.stub=well"]
    env = {**os.environ, "ORCHESTRATOR_HOME": str(tmp_path), "PYTHONPATH": "."}
    code, result, _ = ended(start("tests/commands/stub_sweep.py", *words, env=env))
    assert (code, result["ok"]) == (1, False)
    assert "IsADirectoryError" in result["error"]
    assert [cell["ok"] for cell in result["cells"]] == [True]


def test_nobody_reads_the_last_line(batch: Batch) -> None:
    """As with `orchestrator batch … | true`: 128 + SIGPIPE, as a shell says of other programs."""
    process = batch()
    process.stdout.close()
    process.stdout = None
    _, err = process.communicate(timeout=HANG_S)
    assert process.returncode == 128 + signal.SIGPIPE
    assert "Traceback" not in err
    assert "Exception ignored" not in err


@pytest.mark.parametrize("flags", [("--nonsense",), ("--multirun", "--cfg", "job"), ("batch.input=[",)])
def test_a_wrong_command_line_is_exit_code_2(batch: Batch, flags: tuple[str, ...]) -> None:
    code, result, err = ended(batch(*flags))
    assert (code, result["ok"]) == (2, False)
    assert "error: " in err


def test_hydras_own_lines_come_where_they_are_asked_for(batch: Batch) -> None:
    process = batch("batch.input=missing.jsonl", HYDRA_FULL_ERROR="1")
    _, err = process.communicate(timeout=HANG_S)
    assert "Traceback" in err
    _, _, quiet = ended(batch("batch.input=missing.jsonl"))
    assert quiet.count("error: ") == 1


def test_other_commands_end_without_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "bench.json").write_text(json.dumps({"schema": "orchestrator.bench/1", "summary": {"x": 1.0}}))
    words = ["report", str(tmp_path), str(tmp_path), "--html", f"{tmp_path}/no/page.html"]
    command = [sys.executable, "-m", "orchestrator", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "error: " in done.stderr
