"""The command `orchestrator`, which is `python -m orchestrator` as well: every job, reports, and the graph cache.

Exit codes: 0 all well; 1 a job failed, or an entry is missing or not authentic; 2 the command line is wrong.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from orchestrator.cli import cache_command
from orchestrator.errors import ConfigError, OrchestratorError

console = Console()


# Their arguments are Hydra's: `orchestrator run --help` lists them.
JOBS = {
    "run": "start replicas that share their compiled graphs, and ask them real prompts",
    "sweep": "run every cell of a Hydra multirun, and compare them",
    "bench": "ours against stock and against each other, in one run",
    "warm": "compile models ahead of time, so that later clusters only load",
    "serve": "an OpenAI-compatible service whose replicas start from shared graphs",
    "batch": "answer a file of requests in OpenAI's batch format; again: goes on where it was",
}


def program() -> None:
    """What the installed command runs."""
    sys.exit(main(sys.argv[1:]))


def main(arguments: Sequence[str]) -> int:
    """Run one command; returns the exit code."""
    words = ["warm", *arguments[2:]] if list(arguments[:2]) == ["cache", "warm"] else list(arguments)
    if words and words[0] in JOBS:
        from orchestrator.cli import jobs

        sys.argv = [f"orchestrator {words[0]}", *words[1:]]
        jobs.main(words[0])
        return 0
    options = _parser().parse_args(words)
    try:
        if options.group == "report":
            return _report(options)
        return cache_command.run(options)
    except OrchestratorError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("orchestrator", description="vLLM replicas on Ray that start fast.")
    groups = parser.add_subparsers(required=True, dest="group", metavar="COMMAND")
    for name, about in JOBS.items():
        groups.add_parser(name, help=about, add_help=False)
    report = groups.add_parser("report", help="set two results side by side, or write results as Markdown")
    report.add_argument("results_of", nargs="*", metavar="RESULT", help="two output folders, or the JSON files in them")
    report.add_argument("--html", metavar="FILE", help="write a page too")
    report.add_argument("--results", metavar="FOLDER", help="print a folder of bench.json files as Markdown instead")
    cache = groups.add_parser("cache", help="the durable graph cache", description="The durable graph cache.")
    cache_command.arguments(cache)
    return parser


def _report(options: argparse.Namespace) -> int:
    from orchestrator.report import compare, results

    if options.results is not None:
        files = sorted(Path(options.results).glob("*.json"))
        print(results.markdown({file.stem: json.loads(file.read_text()) for file in files}), end="")
        return 0
    if len(options.results_of) != 2:
        raise ConfigError("report needs two results, or --results FOLDER.")
    compare.show(compare.compare(*options.results_of), console, options.html)
    return 0
