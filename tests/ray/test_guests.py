"""Several services and batches of ours on one cluster: each has a place of its own, and none touches another's."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.footprint import Footprint
from tests.ray import ray_nodes
from tests.ray.ray_nodes import START, flags, free_port, listens
from tests.unit.batch_service import line
from tests.unit.commands import finish, start
from tests.waiting import HANG_S, wait_for

pytestmark = [pytest.mark.usefixtures("no_ray"), pytest.mark.timeout(3 * HANG_S)]
Begin = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def job(mine: Footprint) -> Iterator[Begin]:
    """Starts jobs of two users' kind on a cluster that an operator has started."""
    gcs, sessions = free_port(), tempfile.mkdtemp(prefix="r-", dir="/tmp")
    env = mine.environment(
        ORCHESTRATOR_HOME=str(mine.folder),
        RAY_TMPDIR=sessions,
        RAY_AUTH_MODE="token",
        RAY_AUTH_TOKEN="ab" * 32,
        PYTHONFAULTHANDLER="1",
    )
    head = subprocess.Popen(
        [*START, "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={gcs}", "--num-cpus=4",
         "--include-dashboard=false", "--disable-usage-stats", *flags(head=True)],
        env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, process_group=0,
    )  # fmt: skip

    def begin(name: str, *words: str) -> subprocess.Popen[str]:
        folder = f"hydra.run.dir={mine.folder}/{name}-{time.monotonic_ns()}"
        given = ["engine=fake", "model=tiny_llama", "cluster=existing", f"cluster.address=127.0.0.1:{gcs}", folder]
        return start(f"jobs/{name}.py", *given, *words, env=env)

    try:
        wait_for(lambda: listens(gcs) or head.poll() is not None)
        yield begin
    finally:
        ray_nodes.end(head)


def answers(url: str, model: str = "tiny_llama") -> bool:
    try:
        body = {"model": model, "prompt": "Hello", "max_tokens": 2}
        return httpx.post(f"{url}/v1/completions", json=body, timeout=60.0).is_success
    except httpx.HTTPError:
        return False


def served(job: Begin, url: str, *words: str) -> subprocess.Popen[str]:
    """A service that answers at an address."""
    process = job("serve", *words, "serve.drain_s=2")
    wait_for(lambda: (process.is_ready() and answers(url)) or process.poll() is not None, pause_s=0.5)
    assert process.poll() is None, process.communicate()
    return process


def end(service: subprocess.Popen[str]) -> tuple[int, dict, str]:
    os.killpg(service.pid, signal.SIGINT)
    return finish(service)


def test_services_and_batches_live_side_by_side(job: Begin, mine: Footprint) -> None:
    port = free_port()
    theirs = f"http://127.0.0.1:{port}"
    first = served(job, theirs, f"serve.port={port}")

    # the same name, and then the same route: refused before anything starts
    for words, where in ((["serve.drain_s=2"], "serve.name"), (["serve.name=mine"], "serve.route_prefix")):
        code, result, _ = finish(job("serve", f"serve.port={free_port()}", *words))
        assert (code, where in result["error"]) == (2, True), result

    # another name and route: it says where it really is
    own = (f"serve.port={free_port()}", "serve.name=mine", "serve.route_prefix=/mine")
    second = served(job, f"{theirs}/mine", *own)

    # a batch has its own, and leaves theirs
    (mine.folder / "in.jsonl").write_text("".join(line(f"r{i}", max_tokens=2) for i in range(20)))
    code, result, err = finish(job("batch", f"batch.input={mine.folder}/in.jsonl", "serve.drain_s=2"))
    assert (code, result.get("answered")) == (0, 20), (result, err[-2000:])
    found = [json.loads(text) for text in (mine.folder / "in.answers.jsonl").read_text().splitlines()]
    assert {answer["response"]["status_code"] for answer in found} == {200}
    assert answers(theirs)
    assert answers(f"{theirs}/mine")

    # who ends takes what is his
    code, _, err = end(second)
    assert code == 0
    assert f":{port}" in err  # the address that is used
    assert answers(theirs)
    assert not answers(f"{theirs}/mine")
    assert end(first)[0] == 0


def test_of_two_that_begin_at_once_with_one_name_one_serves(job: Begin) -> None:
    port = free_port()
    both = [job("serve", f"serve.port={port}", "serve.drain_s=2") for _ in range(2)]
    wait_for(
        lambda: any(p.is_ready() for p in both) and any(p.poll() is not None for p in both),
        lambda: "\n".join(part for process in both for part in process.said()),
        pause_s=0.5,
    )
    (serves,) = [process for process in both if process.poll() is None]
    (refused,) = [process for process in both if process is not serves]
    code, result, _ = finish(refused)
    assert (code, "serve.name" in result["error"]) == (2, True), result
    assert answers(f"http://127.0.0.1:{port}")  # its end was not the other's
    code, _, err = end(serves)
    assert code == 0, err[-5000:]


def test_an_application_that_was_replaced_is_left(job: Begin, mine: Footprint) -> None:
    """Somebody deploys another application under our name, without asking us; our end is not its end."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    ours = served(job, url, f"serve.port={port}")
    program = Path(mine.folder / "theirs.py")
    program.write_text(
        "import sys, ray\nfrom ray import serve\n"
        "ray.init(sys.argv[1], log_to_driver=False)\n"
        "@serve.deployment(ray_actor_options={'num_cpus': 0})\n"
        "class Theirs:\n    async def __call__(self, request):\n        return 'theirs'\n"
        "serve.run(Theirs.bind(), name='orchestrator', route_prefix='/')\n"
    )
    address = next(word.partition("=")[2] for word in ours.args if str(word).startswith("cluster.address="))
    env = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "ab" * 32}
    done = subprocess.run(
        [ours.args[0], str(program), address], env=env, capture_output=True, text=True, timeout=HANG_S, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    code, _, err = end(ours)
    assert "it stays" in err, (code, err[-2000:])
    assert httpx.get(url, timeout=60.0).text == "theirs"
