"""Set two results side by side, or write a folder of benchmarks' results as Markdown.

python jobs/report.py outputs/2026-01-01/10-00-00-1 outputs/2026-01-02/10-00-00-1 --html comparison.html
python jobs/report.py --results docs/results > docs/results/README.md
"""

from orchestrator.cli.main import job

if __name__ == "__main__":
    job("report")
