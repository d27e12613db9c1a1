"""A service that was submitted as a Ray job: a batch of 10,000 through it, a browser at its page, and its end."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from tests import footprint
from tests.browser import WIDTHS, browser, check_layout, needs_browser
from tests.conftest import ROOT
from tests.footprint import Footprint
from tests.ray.test_job_submit import RAY, cluster, free_port, status, submit
from tests.waiting import HANG_S, wait_for

__all__ = ["cluster"]  # the fixture
REQUESTS = 10_000


@pytest.fixture(scope="module")
def mine(cluster: dict[str, str]) -> Iterator[Footprint]:
    """What comes after the cluster."""
    with Footprint() as found:
        yield found


@pytest.fixture(scope="module")
def url(mine: Footprint, cluster: dict[str, str]) -> str:
    port = free_port()
    overrides = [
        "model=tiny_llama", "cluster=existing", f"graph_cache.store={cluster['STATE']}/graphs", f"serve.port={port}",
        "engine.max_num_seqs=64", "engine.kv_cache_gib=0.25", "serve.drain_s=3", "serve.target_ongoing_requests=64",
        "model.max_model_len=8192", "model.tiny.max_position_embeddings=8192",  # answers that outlast the drain
    ]  # fmt: skip
    started = submit(cluster, "service", " ".join(overrides), "--no-wait", job="serve", base="")
    assert started.returncode == 0, started.stdout + started.stderr
    found = f"http://127.0.0.1:{port}"

    def served() -> bool:
        try:  # the front is there before its replicas are
            return bool(httpx.get(f"{found}/status.json", timeout=HANG_S).json()["replicas"])
        except (httpx.HTTPError, ValueError, KeyError):
            return False

    logs = [RAY, "job", "logs", "service"]
    wait_for(served, lambda: subprocess.run(logs, env=cluster, capture_output=True, text=True).stdout, 0.5)
    return found


def replica_processes() -> list[str]:
    """Replicas' and engines'; the cluster keeps what serves its next job: the registry, a node's zygote, Ray Serve."""
    return [footprint.line(p) for p in footprint.processes("VLLM::", "vllm.reaper", "ServeReplica")]


def placement_groups(cluster: dict[str, str]) -> list[str]:
    command = [RAY, "list", "placement-groups", "--filter", "state!=REMOVED", "--format", "json"]
    done = subprocess.run(command, env=cluster, capture_output=True, text=True, timeout=HANG_S, check=True)
    return [line for line in done.stdout.splitlines() if "placement_group_id" in line]


@needs_browser
def test_the_status_page_in_a_browser(url: str) -> None:
    with browser() as chromium:
        for width in WIDTHS:
            page = chromium.new_page(viewport={"width": width, "height": 900})
            page.goto(f"{url}/status")
            assert page.get_by_text("tiny_llama").first.is_visible()
            assert page.get_by_text("compiled").first.is_visible()
            check_layout(page)


def batch(url: str, folder: Path) -> subprocess.Popen[str]:
    command = [
        sys.executable, "jobs/batch.py", f"batch.url={url}", f"batch.input={folder}/in.jsonl",
        f"hydra.run.dir={folder}/outputs", "batch.concurrency=64",
    ]  # fmt: skip
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_ten_thousand_prompts_with_the_driver_killed_in_the_middle(url: str, tmp_path: Path) -> None:
    with (tmp_path / "in.jsonl").open("w") as file:
        for i in range(REQUESTS):
            body = {"model": "tiny_llama", "prompt": f"{i}", "max_tokens": 1, "temperature": 0}
            file.write(
                json.dumps({"custom_id": f"r{i}", "method": "POST", "url": "/v1/completions", "body": body}) + "\n"
            )
    answers = tmp_path / "in.answers.jsonl"
    first = batch(url, tmp_path)

    def a_third() -> bool:
        assert first.poll() is None, first.stdout.read()
        return answers.exists() and answers.read_bytes().count(b"\n") >= REQUESTS // 3

    wait_for(a_third)
    first.kill()
    first.wait()
    kept = answers.read_bytes().splitlines()[: REQUESTS // 3]
    second = batch(url, tmp_path)
    said, _ = second.communicate(timeout=HANG_S)
    assert second.returncode == 0, said[-3000:]
    lines = answers.read_bytes().splitlines()
    found = [json.loads(line) for line in lines]
    assert sorted(answer["custom_id"] for answer in found) == sorted(f"r{i}" for i in range(REQUESTS))
    assert {answer["response"]["status_code"] for answer in found} == {200}
    assert all(answer["response"]["body"]["usage"]["completion_tokens"] == 1 for answer in found)
    assert lines[: len(kept)] == kept  # nothing that was finished is lost
    result = json.loads(said.rpartition("RESULT ")[2])
    assert result["before"] >= REQUESTS // 3
    print(f"{REQUESTS - result['before']} answers in {result['seconds']} s")


def test_a_stopped_job_drains_until_its_deadline_and_leaves_nothing(url: str, cluster: dict[str, str]) -> None:
    assert replica_processes()
    assert placement_groups(cluster)
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=HANG_S)
    endings: list[str] = []
    begun: list[bool] = []

    def stream(tokens: int) -> None:
        try:
            parts = client.completions.create(
                model="tiny_llama", prompt="The sea", max_tokens=tokens, stream=True, extra_body={"ignore_eos": True}
            )
            begun.append(bool(next(iter(parts)).choices))
            last = [p.choices[0].finish_reason for p in parts if p.choices and p.choices[0].finish_reason]
            endings.append("whole" if last else "cut")
        except openai.APIError as error:
            endings.append(f"error: {error}")

    threads = [threading.Thread(target=stream, args=(8000,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    wait_for(lambda: len(begun) == 3)
    subprocess.run(
        [RAY, "job", "stop", "service", "--no-wait"], env=cluster, capture_output=True, timeout=HANG_S, check=False
    )
    for thread in threads:
        thread.join(timeout=HANG_S)
    assert len(endings) == 3
    assert "cut" not in endings, endings
    assert any(ending.startswith("error") for ending in endings), endings
    wait_for(lambda: status(cluster, "service") in ("STOPPED", "FAILED", "SUCCEEDED"), pause_s=0.5)
    files = Path(cluster["TMPDIR"])

    def left() -> list[str]:
        sockets = [str(p) for p in files.iterdir() if p.is_socket() or p.name.startswith("orchestrator-serve-")]
        return [*replica_processes(), *placement_groups(cluster), *sockets]

    wait_for(lambda: not left(), lambda: "\n".join(left()), 0.5)
