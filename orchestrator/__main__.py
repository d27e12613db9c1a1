"""`python -m orchestrator …`; see cli.py."""

from orchestrator.cli import program

program()
