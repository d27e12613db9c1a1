"""Which nodes and fronts take a service's requests: Ray Serve's own choices, on a cluster of two nodes."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

from tests.footprint import Footprint, line
from tests.ray import ray_nodes
from tests.ray.ray_nodes import START, flags, free_port, listens
from tests.unit.commands import finish, start
from tests.waiting import HANG_S, wait_for

pytestmark = [pytest.mark.usefixtures("no_ray"), pytest.mark.timeout(3 * HANG_S)]
OTHERS = "import ray; from ray import serve; ray.init(namespace='x'); serve.start(proxy_location='Disabled')"


@dataclass
class Nodes:
    """A head with room for a replica and the front, and a node with room for another replica."""

    address: str
    env: dict[str, str]
    raylets: list[subprocess.Popen[bytes]]

    def serve(self, *words: str) -> subprocess.Popen[str]:
        where = [f"hydra.run.dir={self.env['ORCHESTRATOR_HOME']}/{time.monotonic_ns()}", "cluster=existing"]
        bounds = ["serve.min_replicas=2", "serve.max_replicas=2", "cluster.placement_strategy=SPREAD"]
        model = ["engine=fake", "model=tiny_llama", f"cluster.address={self.address}", "serve.drain_s=2"]
        return start("jobs/serve.py", *where, *bounds, *model, *words, env=self.env)

    def fronts(self) -> int:
        """How many of the service's front have taken requests."""
        logs = Path(self.env["RAY_TMPDIR"]).rglob("replica_*_ingress_*.log")
        return len({log.resolve() for log in logs if "POST /v1/completions" in log.read_text()})

    def proxies(self) -> int:
        family = [process for raylet in self.raylets for process in psutil.Process(raylet.pid).children(recursive=True)]
        return sum("ray::ProxyActor" in line(process) for process in family)


@pytest.fixture
def nodes(mine: Footprint) -> Iterator[Nodes]:
    gcs, sessions = free_port(), tempfile.mkdtemp(prefix="r-", dir="/tmp")
    env = mine.environment(
        ORCHESTRATOR_HOME=str(mine.folder), RAY_TMPDIR=sessions, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="ab" * 32
    )
    made = Nodes(f"127.0.0.1:{gcs}", env, [])

    def begin(*words: str, head: bool = False) -> None:
        command = [*START, *words, "--block", "--node-ip-address=127.0.0.1", "--disable-usage-stats", *flags(head=head)]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "process_group": 0}
        made.raylets.append(subprocess.Popen(command, env=env, **quiet))

    try:
        begin("--head", f"--port={gcs}", "--num-cpus=2", "--include-dashboard=false", head=True)
        wait_for(lambda: listens(gcs) or made.raylets[0].poll() is not None)
        begin(f"--address={made.address}", "--num-cpus=1")
        yield made
    finally:
        ray_nodes.end(*made.raylets)


@pytest.mark.parametrize(("location", "number"), [("EveryNode", 2), ("HeadOnly", 1)])
def test_requests_come_in_where_it_says(nodes: Nodes, location: str, number: int) -> None:
    port = free_port()
    fronts = f"serve.ingress_replicas={number}"
    service = nodes.serve(f"serve.port={port}", f"serve.proxy_location={location}", fronts)
    url = f"http://127.0.0.1:{port}/v1/completions"
    try:
        wait_for(lambda: (service.is_ready() and answers(url)) or service.poll() is not None, pause_s=0.5)
        assert service.poll() is None, service.communicate()
        wait_for(lambda: nodes.proxies() >= number, lambda: f"{nodes.proxies()} proxies")
        assert all(answers(url) for _ in range(20))  # each a connection of its own: the proxies share them
        assert nodes.proxies() == number
        wait_for(lambda: answers(url) and nodes.fronts() == number, lambda: f"{nodes.fronts()} fronts")
    finally:
        with suppress(ProcessLookupError):
            os.killpg(service.pid, signal.SIGINT)
    code, result, _ = finish(service)
    assert (code, result["ok"]) == (0, True), result


def test_a_ray_serve_that_listens_nowhere_is_told(nodes: Nodes) -> None:
    """Another's, without proxies."""
    environment = {**os.environ, **nodes.env, "RAY_ADDRESS": nodes.address}
    other = subprocess.run(
        [START[0], "-c", OTHERS], env=environment, capture_output=True, text=True, timeout=HANG_S, check=False
    )
    assert other.returncode == 0, other.stderr
    code, result, _ = finish(nodes.serve(f"serve.port={free_port()}"))
    assert code == 2
    assert "without HTTP" in result["error"]


def answers(url: str) -> bool:
    try:
        return httpx.post(url, json={"model": "tiny_llama", "prompt": "Hello", "max_tokens": 2}, timeout=60).is_success
    except httpx.HTTPError:
        return False
