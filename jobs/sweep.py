"""Run every cell of a Hydra multirun, and compare them.

python jobs/sweep.py -m model=smollm2_135m,tiny_llama fast_cold_start=true,false
"""

from orchestrator.cli.main import job

if __name__ == "__main__":
    job("sweep")
