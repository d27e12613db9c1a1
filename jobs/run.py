"""Start replicas that share their compiled graphs, and ask them real prompts.

python jobs/run.py model=smollm2_135m
"""

from orchestrator.cli.main import job

if __name__ == "__main__":
    job("run")
