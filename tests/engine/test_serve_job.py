"""A service that was submitted as a Ray job: a batch of 10,000 through it, a browser at its page, and its end."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import openai
import psutil
import pytest

from tests.browser import WIDTHS, browser, check_layout, needs_browser
from tests.engine.conftest import leftovers
from tests.engine.test_sharing import ROOT
from tests.ray.test_job_submit import RAY, cluster, free_port, status, submit

__all__ = ["cluster"]  # the fixture
REQUESTS = 10_000


@pytest.fixture(scope="module")
def before(cluster: dict[str, str]) -> set[Path]:
    return leftovers(cluster["TMPDIR"])


@pytest.fixture(scope="module")
def url(before: set[Path], cluster: dict[str, str]) -> str:
    port = free_port()
    overrides = [
        "model=tiny_llama", "cluster=existing", f"graph_cache.store={cluster['STATE']}/graphs", f"serve.port={port}",
        "engine.max_num_seqs=64", "engine.kv_cache_gib=0.25", "serve.drain_s=3", "serve.target_ongoing_requests=64",
        "model.max_model_len=8192", "model.tiny.max_position_embeddings=8192",  # answers that outlast the drain
    ]  # fmt: skip
    started = submit(cluster, "service", " ".join(overrides), "--no-wait", job="serve", base="")
    assert started.returncode == 0, started.stdout + started.stderr
    found = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 240
    while True:
        try:
            if httpx.get(f"{found}/status.json", timeout=5).json()["replicas"]:  # the front is there before they are
                break
        except (httpx.HTTPError, ValueError, KeyError):
            pass
        logs = [RAY, "job", "logs", "service"]
        assert time.monotonic() < deadline, subprocess.run(logs, env=cluster, capture_output=True, text=True).stdout
        time.sleep(0.5)
    return found


def replica_processes() -> list[str]:
    """Replicas' and engines'; the cluster keeps what serves its next job: the registry, a node's zygote, Ray Serve."""
    lines = [" ".join(p.info["cmdline"] or ()) for p in psutil.process_iter(["cmdline"])]
    return [line for line in lines if any(w in line for w in ("VLLM::", "engine.processes", "ServeReplica"))]


def placement_groups(cluster: dict[str, str]) -> list[str]:
    command = [RAY, "list", "placement-groups", "--filter", "state!=REMOVED", "--format", "json"]
    done = subprocess.run(command, env=cluster, capture_output=True, text=True, timeout=60, check=True)
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
    deadline = time.monotonic() + 300
    while not answers.exists() or answers.read_bytes().count(b"\n") < REQUESTS // 3:
        assert first.poll() is None, first.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.2)
    first.kill()
    first.wait()
    kept = answers.read_bytes().splitlines()[: REQUESTS // 3]
    second = batch(url, tmp_path)
    said, _ = second.communicate(timeout=400)
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


def test_a_stopped_job_drains_until_its_deadline_and_leaves_nothing(
    url: str, cluster: dict[str, str], before: set[Path]
) -> None:
    assert replica_processes()
    assert placement_groups(cluster)
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120)
    endings: list[str] = []

    def stream(tokens: int) -> None:
        try:
            parts = client.completions.create(
                model="tiny_llama", prompt="The sea", max_tokens=tokens, stream=True, extra_body={"ignore_eos": True}
            )
            last = [p.choices[0].finish_reason for p in parts if p.choices and p.choices[0].finish_reason]
            endings.append("whole" if last else "cut")
        except openai.APIError as error:
            endings.append(f"error: {error}")

    threads = [threading.Thread(target=stream, args=(8000,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(2.0)
    began = time.monotonic()
    subprocess.run(
        [RAY, "job", "stop", "service", "--no-wait"], env=cluster, capture_output=True, timeout=90, check=False
    )
    for thread in threads:
        thread.join(timeout=60)
    assert time.monotonic() - began < 45
    assert len(endings) == 3
    assert "cut" not in endings, endings
    assert any(ending.startswith("error") for ending in endings), endings
    while status(cluster, "service") not in ("STOPPED", "FAILED", "SUCCEEDED"):
        assert time.monotonic() - began < 90
        time.sleep(0.5)
    while left := [*replica_processes(), *placement_groups(cluster), *(leftovers(cluster["TMPDIR"]) - before)]:
        assert time.monotonic() - began < 120, left
        time.sleep(0.5)
