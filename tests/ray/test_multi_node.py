"""Two nodes with disks of their own: the second one is in a mount namespace, where the shared folder is another."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ray import ray_nodes
from tests.ray.ray_nodes import RAY, START, flags, free_port, patience
from tests.ray.test_jobs import PATIENT
from tests.unit.commands import ROOT
from tests.waiting import HANG_S, wait_for

NAMESPACES = subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode == 0
pytestmark = pytest.mark.skipif(not NAMESPACES, reason="a mount namespace needs root")
WIDE = (  # a rank on each node
    "replicas=1",
    "engine.device=gpu",
    "engine.tensor_parallel_size=2",
    "cluster.placement_strategy=STRICT_SPREAD",
)
BASE = ("model=tiny_llama", "cluster=existing", *PATIENT)


class Nodes:
    """A head, and a node whose `disk` is not the head's.

    Attributes:
        disk: the folder that both nodes call by the same name.
        other: what the second node has there, as the first one calls it.
    """

    def __init__(self, folder: Path, engine: str = "engine=fake", gpus: int = 1) -> None:
        self._engine, self._gpus = engine, gpus
        self.disk, self.other = folder / "disk", folder / "other"
        for made in (self.disk, self.other):
            made.mkdir()
        self.port = free_port()
        self.environment = {
            **os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "ab" * 32,
            "RAY_TMPDIR": tempfile.mkdtemp(prefix="r-", dir="/tmp"), **patience(),
            "ORCHESTRATOR_HOME": str(self.disk), "TMPDIR": str(self.disk), "ORCHESTRATOR_SIGNING_KEY": "ab" * 32,
        }  # fmt: skip
        self.environment.pop("RAY_ADDRESS", None)
        self._processes: list[subprocess.Popen[bytes]] = []
        self._log = (folder / "log").open("w")

    def start(self) -> None:
        common = ["--block", "--num-cpus=1", f"--num-gpus={self._gpus}", "--disable-usage-stats"]
        common.append("--object-store-memory=100000000")
        self._run([*START, "--head", "--node-ip-address=127.0.0.1", f"--port={self.port}",
                   "--include-dashboard=false", '--resources={"first": 1}', *flags(head=True), *common])  # fmt: skip
        wait_for(self._listens, self._status)
        join = [*START, f"--address=127.0.0.1:{self.port}", '--resources={"second": 1}', *flags(), *common]
        script = 'mount --bind "$1" "$2" && shift 2 && exec "$@"'
        self._run(["unshare", "--mount", "sh", "-c", script, "sh", str(self.other), str(self.disk), *join])
        wait_for(lambda: self._status().count(" node_") == 2, self._status)

    def run(self, *overrides: str) -> dict:
        here = (f"cluster.address=127.0.0.1:{self.port}", f"hydra.run.dir={self.disk}/out")
        command = [sys.executable, "jobs/run.py", *BASE, self._engine, *here, *overrides]
        done = subprocess.run(
            command, cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=HANG_S, check=False
        )
        assert "RESULT " in done.stdout, done.stderr[-3000:]
        result = json.loads(done.stdout.rpartition("RESULT ")[2])
        if not result["ok"]:
            return result
        return json.loads((self.disk / "out" / "result.json").read_text())

    def stop(self) -> None:
        ray_nodes.end(*self._processes)
        self._processes.clear()
        shutil.rmtree(self.environment["RAY_TMPDIR"], ignore_errors=True)

    def _run(self, command: list[str]) -> None:
        self._processes.append(
            subprocess.Popen(command, env=self.environment, stdout=self._log, stderr=self._log, process_group=0)
        )

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def _status(self) -> str:
        command = [RAY, "status", f"--address=127.0.0.1:{self.port}"]
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=HANG_S, check=False
        )
        return done.stdout


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    made = Nodes(tmp_path_factory.mktemp("nodes"))
    made.start()
    yield made
    made.stop()


def receipts(result: dict) -> list[dict]:
    return [replica["receipt"] for replica in result["replicas"]]


def test_the_second_node_starts_without_compiling(nodes: Nodes) -> None:
    first, second = receipts(nodes.run("replicas=2", "engine.device=gpu"))
    assert first["outcome"] == "compiled"
    assert (second["outcome"], second["source"]) == ("hit", "memory")  # its own disk had no copy
    disks = (nodes.disk, nodes.other)  # either may be the second replica's
    assert sum(bool(list(disk.glob("installed/*/torch_compile_cache"))) for disk in disks) == 1


def test_graphs_reach_every_node_of_a_replica(nodes: Nodes) -> None:
    (cold,) = nodes.run(*WIDE)["replicas"]
    assert (cold["receipt"]["outcome"], cold["engine"]["compiled"]) == ("compiled", 2)
    assert cold["receipt"]["published"]
    (warm,) = nodes.run(*WIDE)["replicas"]
    assert (warm["receipt"]["outcome"], warm["engine"]["loaded"]) == ("hit", 2)
    assert not list(nodes.other.glob("orchestrator-*/*/*"))  # nothing of the replica's


def test_a_replica_without_room_says_which_bundles_and_when(nodes: Nodes) -> None:
    pack = ("engine.tensor_parallel_size=2", "cluster.placement_strategy=STRICT_PACK", "cluster.placement_timeout_s=3")
    result = nodes.run("replicas=1", "engine.device=gpu", *pack)
    assert "no room for [{'GPU': 1.0}, {'GPU': 1.0}] (STRICT_PACK) within 3 s" in result["error"]
