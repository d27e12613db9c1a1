"""Compile models ahead of time and publish their graphs, so that later clusters only load them.

python jobs/warm.py -m model=smollm2_135m,tiny_llama graph_cache.store=s3://bucket/graphs
"""

from orchestrator.cli.main import job

if __name__ == "__main__":
    job("warm")
