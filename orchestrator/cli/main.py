"""The command `orchestrator`, which is `python -m orchestrator` as well: every job, reports, and the graph cache."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from orchestrator.cli import exit as endings
from orchestrator.cli.jobs import TABLE, Job


def program() -> None:
    """What the installed command runs."""
    sys.exit(main(sys.argv[1:]))


def job(name: str) -> None:
    """What a script of jobs/ runs: the job of its name, and exits."""
    sys.exit(main([name, *sys.argv[1:]], called=sys.argv[0]))


def main(arguments: Sequence[str], called: str = "") -> int:
    """Run one command.

    Args:
        arguments: its name, and what follows.
        called: the script that a job was started by, for its help and for what results say of their command.

    Returns:
        The exit code.
    """
    words = ["warm", *arguments[2:]] if list(arguments[:2]) == ["cache", "warm"] else list(arguments)
    found = TABLE.get(words[0]) if words else None
    if isinstance(found, Job):
        from orchestrator.cli.hydra_app import HydraApp

        sys.argv = [called or f"orchestrator {found.name}", *words[1:]]
        return HydraApp(found).run()
    options = _parser().parse_args(words)
    return endings.plain(lambda: int(options.run(options)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("orchestrator", description="vLLM replicas on Ray that start fast.")
    groups = parser.add_subparsers(required=True, dest="group", metavar="COMMAND")
    for entry in TABLE.values():
        if isinstance(entry, Job):  # `orchestrator run --help` is Hydra's
            groups.add_parser(entry.name, help=entry.about, add_help=False)
        else:
            command = groups.add_parser(
                entry.name, help=entry.about, description=f"{entry.about[0].upper()}{entry.about[1:]}."
            )
            entry.arguments(command)
            command.set_defaults(run=entry.run)
    return parser
