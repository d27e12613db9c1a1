"""`python -m orchestrator …`; see cli/main.py."""

from orchestrator.cli.main import program

program()
