"""Benchmarks: ours against stock and against each other, in one run.

python jobs/bench.py bench=depth model=tiny_llama
"""

from orchestrator.cli.main import job

if __name__ == "__main__":
    job("bench")
