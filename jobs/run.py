"""Start replicas that share their compiled graphs, and ask them real prompts.

python jobs/run.py model=smollm2_135m
"""

from orchestrator.cli.jobs import main

if __name__ == "__main__":
    main("run")
