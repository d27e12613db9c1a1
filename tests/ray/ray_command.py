"""The command `ray`, whose raylets know all their agents' ports (see orchestrator/cluster/ray_start.py)."""

import sys

from orchestrator.cluster import ray_start

if __name__ == "__main__":
    from ray.scripts.scripts import main

    with ray_start.told_raylets():
        sys.exit(main())
