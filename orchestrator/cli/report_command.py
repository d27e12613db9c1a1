"""`orchestrator report`: two results side by side, or a folder of benchmarks' results as Markdown."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from orchestrator.cli import terminal
from orchestrator.errors import ConfigError


def arguments(report: argparse.ArgumentParser) -> None:
    """Add this command's own arguments to its parser."""
    report.add_argument("results_of", nargs="*", metavar="RESULT", help="two output folders, or the JSON files in them")
    report.add_argument("--html", metavar="FILE", help="write a page too")
    report.add_argument("--results", metavar="FOLDER", help="print a folder of bench.json files as Markdown instead")


def run(options: argparse.Namespace) -> int:
    """Do what was asked; returns the exit code.

    Raises:
        ConfigError: the command line is wrong, or what it names is no result.
    """
    from orchestrator.report import compare, results

    if options.results is not None:
        files = sorted(Path(options.results).glob("*.json"))
        print(results.markdown({file.stem: json.loads(file.read_text()) for file in files}), end="")
        return 0
    if len(options.results_of) != 2:
        raise ConfigError("report needs two results, or --results FOLDER.")
    compare.show(compare.compare(*options.results_of), terminal.console(), options.html)
    return 0
