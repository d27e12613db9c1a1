"""An OpenAI-compatible service whose replicas start from shared graphs; Ctrl-C drains and stops.

python jobs/serve.py model=smollm2_135m serve.max_replicas=2
"""

from orchestrator.cli.jobs import main

if __name__ == "__main__":
    main("serve")
