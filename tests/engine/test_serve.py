"""The service as people use it: the official client, bad requests, a killed replica, Ctrl-C."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import psutil
import pytest

from tests import footprint
from tests.engine.services import Service, served
from tests.engine.test_forked_replicas import forkserver_of
from tests.unit.commands import finish, start
from tests.waiting import HANG_S

MODEL = "smollm2_135m"
KEY = "sk-test"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("serve")
    (folder / "keys").write_text(f"other\n{KEY}\n")
    words = [
        f"model={MODEL}", "graph_cache=per_run", f"serve.api_keys_file={folder}/keys", "serve.min_replicas=1",
        "serve.max_replicas=2", "serve.target_ongoing_requests=2", "serve.upscale_delay_s=0.5",
        "serve.downscale_delay_s=600", "serve.autoscaling=ahead", "serve.health_period_s=2", "cluster.num_cpus=4",
        "engine.kv_cache_gib=0.25", "serve.drain_s=600",
    ]  # fmt: skip
    with served(folder, *words, key=KEY) as made:
        yield made


def client_of(service: Service) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{service.address}/v1", api_key=KEY, max_retries=0, timeout=HANG_S)


class Streams:
    """Streaming requests at once. Each begins when the one before it has a token: the router sees who is busy."""

    def __init__(self, service: Service, count: int, tokens: int) -> None:
        self._service, self._tokens = service, tokens
        self._begun: list[bool] = []
        self._endings: list[str] = []
        self._threads = [threading.Thread(target=self._one) for _ in range(count)]
        for i, thread in enumerate(self._threads):
            thread.start()
            service.wait_for(lambda begun=i + 1: len(self._begun) == begun, "no tokens")

    def endings(self) -> list[str]:
        """How each ended: its finish reason, "cut", or the error that it was told."""
        for thread in self._threads:
            thread.join(timeout=HANG_S)
        return self._endings

    def _one(self) -> None:
        reason = "cut"
        try:
            parts = client_of(self._service).completions.create(
                model=MODEL, prompt="The sea is", max_tokens=self._tokens, stream=True, extra_body={"ignore_eos": True}
            )
            for i, part in enumerate(parts):
                if i == 0:
                    self._begun.append(True)
                reason = part.choices[0].finish_reason or reason
            self._endings.append(reason)
        except openai.APIError as error:
            self._endings.append(f"error: {error}")


def test_the_official_client(service: Service) -> None:
    client = client_of(service)
    assert [m.id for m in client.models.list()] == [MODEL]
    asked = [{"role": "user", "content": "What is the capital of France?"}]
    whole = client.chat.completions.create(model=MODEL, messages=asked, temperature=0, max_tokens=24)
    assert "Paris" in whole.choices[0].message.content
    usage = whole.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert 0 < usage.completion_tokens <= 24
    stream = client.chat.completions.create(
        model=MODEL, messages=asked, temperature=0, max_tokens=24, stream=True, stream_options={"include_usage": True}
    )
    parts = list(stream)
    text = "".join(p.choices[0].delta.content or "" for p in parts if p.choices)
    assert text == whole.choices[0].message.content
    assert parts[-1].usage == usage
    plain = client.completions.create(model=MODEL, prompt="One, two, three,", temperature=0, max_tokens=6)
    assert "four" in plain.choices[0].text


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ('{"model": ', 400),
        ("[]", 400),
        (json.dumps({"model": MODEL, "prompt": "x" * 10_000_000}), 413),
        (json.dumps({"model": MODEL, "prompt": "x " * 20_000}), 400),  # longer than the model's context
        (json.dumps({"model": MODEL, "prompt": "x", "n": 1_000_000_000}), 400),
        (json.dumps({"model": MODEL, "prompt": "x", "temperature": float("nan")}), 400),
        (json.dumps({"model": MODEL, "prompt": "x", "temperature": -1}), 400),
        (json.dumps({"model": MODEL, "prompt": "x", "max_tokens": -5}), 400),
        (json.dumps({"model": "../../etc/passwd", "prompt": "x"}), 404),
        (json.dumps({"model": "gpt-4", "prompt": "x"}), 404),
    ],
    ids=["malformed", "array", "10 MB", "long", "n", "nan", "negative", "max_tokens", "path", "unknown"],
)
def test_bad_input_is_refused_in_openais_form(service: Service, body: str, code: int) -> None:
    answer = service.post("/v1/completions", body)
    assert answer.status_code == code, answer.text[:500]
    error = answer.json()["error"]
    assert error["message"]
    assert len(answer.text) < 2000
    assert service.post("/v1/completions", json.dumps({"model": MODEL, "prompt": "x", "max_tokens": 1})).is_success


@pytest.mark.parametrize("key", ["", "wrong", KEY + "x"])
def test_without_a_right_key_there_is_nothing(service: Service, key: str) -> None:
    for path in ("/v1/completions", "/v1/chat/completions"):
        answer = service.post(path, "{}", key)
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
    assert httpx.get(f"{service.address}/status", timeout=HANG_S).status_code == 401
    assert httpx.get(f"{service.address}/health", timeout=HANG_S).status_code == 200


def test_a_batch_through_it(service: Service, tmp_path: Path) -> None:
    body = {"model": MODEL, "prompt": "One, two, three,", "max_tokens": 4, "temperature": 0}
    asked = [{"custom_id": f"r{i}", "method": "POST", "url": "/v1/completions", "body": body} for i in range(12)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in asked))
    where = [f"batch.url={service.address}", f"batch.input={tmp_path}/in.jsonl", f"hydra.run.dir={tmp_path}/out"]
    code, _, err = finish(start("jobs/batch.py", *where, env=service.mine.environment(OPENAI_API_KEY=KEY)))
    assert code == 0, err
    answers = [json.loads(line) for line in (tmp_path / "in.answers.jsonl").read_text().splitlines()]
    assert sorted(answer["custom_id"] for answer in answers) == sorted(line["custom_id"] for line in asked)
    assert len({answer["response"]["body"]["choices"][0]["text"] for answer in answers}) == 1


def test_load_brings_a_second_replica_that_compiles_nothing(service: Service) -> None:
    stop = threading.Event()
    failures: list[str] = []

    def ask() -> None:
        client = client_of(service)
        while not stop.is_set():
            try:
                client.completions.create(model=MODEL, prompt="The sea is", max_tokens=100)
            except openai.OpenAIError as error:
                failures.append(repr(error))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    service.wait_for(lambda: len(service.status()["replicas"]) == 2, "no second replica")
    stop.set()
    for thread in threads:
        thread.join(timeout=HANG_S)
    assert failures == []
    found = service.status()
    assert sorted(r["receipt"]["outcome"] for r in found["replicas"]) == ["compiled", "hit"]
    assert {r["model"] for r in found["replicas"]} == {MODEL}
    assert len(found["graphs"]) == 1
    second = next(r for r in found["replicas"] if r["receipt"]["outcome"] == "hit")
    assert (second["engine"]["loaded"], second["engine"]["compiled"]) == (1, 0)
    assert sum(p["seconds"] for p in second["phases"]) == pytest.approx(second["first_token_s"], rel=0.05)


def engine_core(replica: psutil.Process) -> psutil.Process:
    """The first fork of the replica's forkserver; the second one is the worker."""
    return min(forkserver_of(replica.pid).children(), key=lambda p: p.create_time())


def test_metrics_tell_how_replicas_started(service: Service) -> None:
    text = ""

    def found() -> bool:
        nonlocal text
        client_of(service).completions.create(model=MODEL, prompt="x", max_tokens=1)  # Ray may lose what was counted
        text = service.metrics()
        weights = {line for line in text.splitlines() if 'phase="weights"' in line}
        outcomes = 'outcome="compiled"' in text and 'outcome="hit"' in text
        return len(weights) == 2 and outcomes and "vllm_time_to_first_token" in text

    def said() -> str:
        return "\n".join(line for line in text.splitlines() if "orchestrator_" in line or "vllm_time_to" in line)

    service.wait_for(found, said)


def test_a_killed_engine_ends_its_streams_plainly_and_is_replaced(service: Service) -> None:
    replicas = [p for p in footprint.processes("model:") if footprint.line(p).startswith("ray::")]
    assert len(replicas) == 2
    engines = [engine_core(replica) for replica in replicas]
    before = {r["replica"] for r in service.status()["replicas"]}
    streams = Streams(service, 6, tokens=300)
    engines[0].kill()
    endings = streams.endings()
    assert len(endings) == 6, endings
    assert "cut" not in endings
    assert any(ending.startswith("error") for ending in endings), endings
    assert any(ending == "length" for ending in endings), endings
    service.wait_for(lambda: {r["replica"] for r in service.status()["replicas"]} - before, "not replaced")
    new = next(r for r in service.status()["replicas"] if r["replica"] not in before)
    assert new["receipt"]["outcome"] == "hit"
    assert client_of(service).completions.create(model=MODEL, prompt="x", max_tokens=1).choices


def test_ctrl_c_finishes_what_was_accepted_and_leaves_nothing(service: Service) -> None:
    streams = Streams(service, 3, tokens=200)  # all are accepted, and none is answered
    service.process.send_signal(signal.SIGINT)
    assert streams.endings() == ["length"] * 3
    assert service.process.wait(timeout=HANG_S) == 0, "".join(service.output[-30:])
    service.mine.check()
