"""An OpenAI-compatible service whose replicas start from shared graphs; Ctrl-C drains and stops.

python jobs/serve.py model=smollm2_135m serve.max_replicas=2
"""

from orchestrator.cli.main import job

if __name__ == "__main__":
    job("serve")
