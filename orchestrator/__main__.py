"""`python -m orchestrator …`; see cli.py."""

from orchestrator.cli.main import program

program()
