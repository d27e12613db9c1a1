"""Set two results side by side.

python jobs/report.py outputs/2026-01-01/10-00-00-1 outputs/2026-01-02/10-00-00-1 --html comparison.html
"""

import argparse
import sys

from rich.console import Console

from orchestrator.errors import ConfigError
from orchestrator.report import compare


def main() -> int:
    parser = argparse.ArgumentParser(description="Set two results of one kind (run, bench, sweep, warm) side by side.")
    parser.add_argument("a", help="a job's output folder, or the JSON file in it")
    parser.add_argument("b", help="another one")
    parser.add_argument("--html", metavar="FILE", help="write a page too")
    options = parser.parse_args()
    try:
        compare.show(compare.compare(options.a, options.b), Console(), options.html)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
