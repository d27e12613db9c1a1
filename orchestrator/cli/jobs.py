"""The table of jobs: what `orchestrator --help` lists, `orchestrator NAME` runs, and each script of jobs/ is.

Each imports what it needs when it runs: a driver that only sends requests loads neither Ray nor vLLM.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.cli import cache_command, report_command

if TYPE_CHECKING:
    from orchestrator.cli.progress import Progress
    from orchestrator.config import AppConfig


@dataclass(frozen=True)
class Done:
    """A job that is done.

    Attributes:
        figures: its RESULT line.
        write: writes its report, and returns the RESULT line with that in it.
    """

    figures: dict[str, Any]
    write: Callable[[], dict[str, Any]] | None = None


@dataclass(frozen=True)
class Job:
    """A job: its arguments are Hydra's, its last line is RESULT.

    Attributes:
        name: of the command, and of its script in jobs/.
        about: one line for --help.
        work: (checked configuration, folder for outputs, display) -> what came of it.
        cell: the job that each cell of a multirun runs, in a process of its own.
        multirun: it is one even without -m.
        compared: a multirun's cells are set side by side in one report.
        parallel: cells may run at the same time.
    """

    name: str
    about: str
    work: Callable[[AppConfig, Path, Progress], Done]
    cell: str
    multirun: bool = False
    compared: bool = False
    parallel: bool = True


@dataclass(frozen=True)
class Command:
    """A command with arguments of its own, and no RESULT line.

    Attributes:
        arguments: adds them to its parser.
        run: returns the exit code.
    """

    name: str
    about: str
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


def _run(app: AppConfig, folder: Path, progress: Progress) -> Done:
    from orchestrator.report import write
    from orchestrator.runs import run

    result = run.execute(app, progress.say)
    return Done(result.summary(), lambda: write.write_run(folder, result, progress.console))


def _bench(app: AppConfig, folder: Path, progress: Progress) -> Done:
    from orchestrator.config import BenchKind

    if app.bench.kind is BenchKind.all:
        from orchestrator.cli import suite

        return Done(suite.execute(app, folder, progress.say))
    from orchestrator import bench
    from orchestrator.report import write

    result = bench.execute(app, progress.say)
    return Done({"ok": result.ok, **result.summary}, lambda: write.write_bench(folder, result, progress.console))


def _warm(app: AppConfig, folder: Path, progress: Progress) -> Done:
    from orchestrator.report import write
    from orchestrator.runs import warm

    result = warm.execute(app, progress.say)
    return Done(result.summary(), lambda: write.write_warm(folder, result, progress.console))


def _serve(app: AppConfig, folder: Path, progress: Progress) -> Done:
    from orchestrator.serve import launch

    return Done(launch.execute(app, progress.say))


def _batch(app: AppConfig, folder: Path, progress: Progress) -> Done:
    from orchestrator.report import write
    from orchestrator.runs.batch import job

    with ExitStack() as stack:

        def earlier(names: list[str]) -> Iterator[Path]:
            from orchestrator.cli import upload

            place = stack.enter_context(tempfile.TemporaryDirectory(prefix="orchestrator-batch-"))
            return upload.earlier(app.upload or "", folder, job.MARK, names, Path(place))

        result = job.execute(app, progress.say, progress.bar, folder, earlier if app.upload else None)
    return Done(result.summary(), lambda: write.write_batch(result, progress.console))


_ALL: tuple[Job | Command, ...] = (
    Job("run", "start replicas that share their compiled graphs, and ask them real prompts", _run, "run",
        compared=True),
    Job("sweep", "run every cell of a Hydra multirun, and compare them", _run, "run", multirun=True, compared=True),
    Job("bench", "ours against stock and against each other, in one run", _bench, "bench", parallel=False),
    Job("warm", "compile models ahead of time, so that later clusters only load", _warm, "warm"),
    Job("serve", "an OpenAI-compatible service whose replicas start from shared graphs", _serve, "serve"),
    Job("batch", "answer a file of requests in OpenAI's batch format; again: goes on where it was", _batch, "batch"),
    Command("report", "set two results side by side, or write results as Markdown", report_command.arguments,
            report_command.run),
    Command("cache", "the durable graph cache", cache_command.arguments, cache_command.run),
)  # fmt: skip
TABLE = {entry.name: entry for entry in _ALL}
