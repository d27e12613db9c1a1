"""Ray Serve's controller when its node dies: a question ends with an error, where Serve's own calls wait for ever. And
which of several replicas is the first."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.waiting import HANG_S

LOST = """
import psutil, ray
from ray import serve
from orchestrator.cluster import ray_start
from orchestrator.errors import ServeError
from orchestrator.serve import controller

ray_start.start(lambda who, what: None, num_cpus=1, include_dashboard=False, log_to_driver=False)
serve.start(proxy_location="Disabled")
assert (controller.status("none"), controller.deployments("none")) == ("NOT_STARTED", {})
(raylet,) = [p for p in psutil.Process().children(recursive=True) if p.name() == "raylet"]
raylet.kill()
for call in (lambda: [controller.status("none") for _ in range(10**9)], lambda: controller.remove("none", 60.0)):
    try:
        call()
    except ServeError as error:
        print(error)
ray.shutdown()
"""

FIRST = """
import os, time
import ray
from ray import serve
from orchestrator.cluster import ray_start
from orchestrator.serve import warm_ahead

@serve.deployment(num_replicas=2, ray_actor_options={"num_cpus": 0})
class Front:
    def __call__(self):
        return os.getpid(), warm_ahead.first()

def fronts():
    found = {}
    while len(found) < 2:
        try:
            pid, first = handle.remote().result(timeout_s=600)
        except ray.exceptions.RayActorError:
            continue
        found[pid] = first
    return found

ray_start.start(lambda who, what: None, num_cpus=1, include_dashboard=False, log_to_driver=False)
serve.start(proxy_location="Disabled")
handle = serve.run(Front.bind())
(first,) = [pid for pid, is_first in fronts().items() if is_first]
os.kill(first, 9)
while first in (found := fronts()) or list(found.values()).count(True) != 1:
    time.sleep(0.1)
serve.shutdown()
ray.shutdown()
"""


def test_a_lost_cluster_ends_every_question() -> None:
    health = {"RAY_health_check_initial_delay_ms": "500", "RAY_health_check_period_ms": "500"}
    done = subprocess.run(
        [sys.executable, "-c", LOST], env={**os.environ, **health}, capture_output=True, text=True, timeout=HANG_S
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("The Ray cluster is lost: none of its nodes is alive.") == 2


def test_one_of_several_replicas_is_the_first_and_another_when_it_is_gone() -> None:
    done = subprocess.run([sys.executable, "-c", FIRST], capture_output=True, text=True, timeout=HANG_S)
    assert done.returncode == 0, done.stderr
