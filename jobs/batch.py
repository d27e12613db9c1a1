"""Answer a file of requests (OpenAI's batch format); run it again to go on where it was killed.

python jobs/batch.py model=smollm2_135m batch.input=requests.jsonl batch.output=answers.jsonl
"""

from orchestrator.cli.main import job

if __name__ == "__main__":
    job("batch")
