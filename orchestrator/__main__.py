"""`python -m orchestrator cache …`; see cli.py."""

import sys

from orchestrator.cli import main

sys.exit(main(sys.argv[1:]))
