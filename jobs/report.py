"""Set two results side by side, or write a folder of benchmarks' results as Markdown.

python jobs/report.py outputs/2026-01-01/10-00-00-1 outputs/2026-01-02/10-00-00-1 --html comparison.html
python jobs/report.py --results docs/results > docs/results/README.md
"""

import argparse
import json
import sys
from pathlib import Path

from rich.console import Console

from orchestrator.errors import ConfigError
from orchestrator.report import compare, results


def main() -> int:
    parser = argparse.ArgumentParser(description="Set two results of one kind (run, bench, sweep, warm) side by side.")
    parser.add_argument("results_of", nargs="*", metavar="RESULT", help="two output folders, or the JSON files in them")
    parser.add_argument("--html", metavar="FILE", help="write a page too")
    parser.add_argument("--results", metavar="FOLDER", help="print a folder of bench.json files as Markdown instead")
    options = parser.parse_args()
    if options.results is not None:
        files = sorted(Path(options.results).glob("*.json"))
        print(results.markdown({file.stem: json.loads(file.read_text()) for file in files}), end="")
        return 0
    if len(options.results_of) != 2:
        parser.error("name two results, or --results FOLDER")
    try:
        compare.show(compare.compare(*options.results_of), Console(), options.html)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
