"""Ray-distributed vLLM replicas that start fast."""

__version__ = "0.1.0"
