"""Clients that people have, against a service with two replicas, without a special setting; and a fuzzer."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import litellm
import openai
import pytest
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel

from tests.engine.services import Service, served
from tests.waiting import HANG_S

MODEL = "smollm2_135m"
USER = [{"role": "user", "content": "What is the capital of France?"}]
FUZZ_S = int(os.environ.get("ORCHESTRATOR_TEST_FUZZ_S", "300"))
LONG = 900  # tokens, of the 1024 that fit
pytestmark = pytest.mark.timeout(3 * HANG_S)
TOOL = {
    "name": "add",
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {"a": {"type": "integer"}},
        "required": ["a"],
        "additionalProperties": False,
    },
}


class Number(BaseModel):
    number: int


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    words = [
        f"model={MODEL}", "graph_cache=per_run", "serve.min_replicas=2", "serve.max_replicas=2", "cluster.num_cpus=4",
        "engine.kv_cache_gib=0.5", "+serve.frontend.enable_auto_tool_choice=true",
        "+serve.frontend.tool_call_parser=hermes",
    ]  # fmt: skip
    with served(tmp_path_factory.mktemp("serve"), *words) as made:
        yield made


@pytest.fixture(scope="module")
def url(service: Service) -> str:
    return f"{service.address}/v1"


@pytest.fixture
def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=url, api_key="none", timeout=HANG_S)


def test_openais_lists_the_model(client: openai.OpenAI) -> None:
    (found,) = client.models.list()
    assert client.models.retrieve(MODEL) == found
    assert found.created > 1_600_000_000
    assert (found.max_model_len, found.parent) == (1024, None)


def test_openais_chats(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model=MODEL, messages=USER, temperature=0, max_completion_tokens=12)
    several = client.chat.completions.create(model=MODEL, messages=USER, temperature=1, max_completion_tokens=4, n=3)
    assert [choice.index for choice in several.choices] == [0, 1, 2]
    parts = [{"role": "user", "content": [{"type": "text", "text": USER[0]["content"]}]}]
    asked = {"model": MODEL, "messages": parts, "temperature": 0, "max_tokens": 12, "logprobs": True, "top_logprobs": 2}
    same = client.chat.completions.create(**asked).choices[0]
    assert same.message.content == whole.choices[0].message.content
    assert len(same.logprobs.content[0].top_logprobs) == 2
    with client.chat.completions.stream(model=MODEL, messages=USER, temperature=0, max_tokens=12) as stream:
        assert stream.get_final_completion().choices[0].message.content == same.message.content


def test_openais_gets_answers_of_a_form(client: openai.OpenAI) -> None:
    found = client.chat.completions.parse(model=MODEL, messages=USER, response_format=Number, max_tokens=80)
    assert isinstance(found.choices[0].message.parsed, Number)


def test_openais_calls_tools(client: openai.OpenAI) -> None:
    asked = {"model": MODEL, "messages": [{"role": "user", "content": "add 3"}], "max_tokens": 120, "temperature": 0}
    tools: dict[str, Any] = {"tools": [{"type": "function", "function": TOOL}], "tool_choice": "required"}
    whole = client.chat.completions.create(**asked, **tools).choices[0].message.tool_calls[0].function
    assert (whole.name, set(json.loads(whole.arguments))) == ("add", {"a"})
    parts = [p for p in client.chat.completions.create(**asked, **tools, stream=True) if p.choices]
    calls = [call for part in parts for call in part.choices[0].delta.tool_calls or []]
    assert "".join(call.function.arguments or "" for call in calls) == whole.arguments


def test_openais_is_told_what_is_wrong(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="gpt-4"):
        client.chat.completions.create(model="gpt-4", messages=USER)
    with pytest.raises(openai.NotFoundError):
        client.responses.create(model=MODEL, input="hello")
    with pytest.raises(openai.BadRequestError, match="1024"):
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "a b " * 5000}])
    with pytest.raises(openai.BadRequestError, match="must not be an empty array"):
        client.chat.completions.create(model=MODEL, messages=USER, tools=[])
    with pytest.raises(openai.BadRequestError, match=r"messages"):
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": [[1]]}])


def test_langchains(url: str) -> None:
    chat = ChatOpenAI(base_url=url, api_key="none", model=MODEL, max_tokens=12, temperature=0)
    whole = chat.invoke("What is the capital of France?")
    tokens = whole.usage_metadata["output_tokens"]
    assert 0 < tokens <= 12
    streamed = list(chat.stream("What is the capital of France?", stream_usage=True))
    assert "".join(part.content for part in streamed) == whole.content
    assert [part.usage_metadata["output_tokens"] for part in streamed if part.usage_metadata] == [tokens]
    assert {answer.content for answer in chat.batch(["What is the capital of France?"] * 4)} == {whole.content}
    assert asyncio.run(chat.ainvoke("What is the capital of France?")).content == whole.content
    formed = ChatOpenAI(base_url=url, api_key="none", model=MODEL, max_tokens=80).with_structured_output(Number)
    assert isinstance(formed.invoke("Say a number."), Number)
    plain = OpenAI(base_url=url, api_key="none", model=MODEL, max_tokens=6, temperature=0)
    assert "four" in plain.invoke("One, two, three,")


@pytest.mark.parametrize("provider", ["openai", "hosted_vllm"])
def test_litellms(url: str, provider: str) -> None:
    def ask(model: str = MODEL, messages: list = USER, **more: Any) -> Any:
        return litellm.completion(
            model=f"{provider}/{model}", api_base=url, api_key="none", messages=messages, max_tokens=12, temperature=0,
            timeout=HANG_S, **more,
        )  # fmt: skip

    whole = ask()
    assert 0 < whole.usage.completion_tokens <= 12
    parts = list(ask(stream=True))
    assert "".join(part.choices[0].delta.content or "" for part in parts) == whole.choices[0].message.content
    with pytest.raises(litellm.NotFoundError, match="gpt-4"):
        ask("gpt-4")
    with pytest.raises(litellm.ContextWindowExceededError):
        ask(messages=[{"role": "user", "content": "a b " * 5000}])


@pytest.mark.parametrize("words", [["openai", "/v1/completions"], ["openai-chat", "/v1/chat/completions"]])
def test_vllms_benchmark(service: Service, tmp_path: Path, words: list[str]) -> None:
    """`vllm bench serve`, which asks the service for the model and its tokenizer."""
    program = (
        "import argparse; from vllm.benchmarks.serve import add_cli_args, main; parser = argparse.ArgumentParser();"
        "add_cli_args(parser); main(parser.parse_args())"  # the CPU wheel's `vllm` asks for a version of `vllm`
    )
    options = ["--backend", words[0], "--endpoint", words[1], "--base-url", service.address, "--num-prompts", "12"]
    options += ["--dataset-name", "random", "--random-input-len", "16", "--random-output-len", "8"]
    options += ["--save-result", "--result-dir", str(tmp_path), "--result-filename", "found.json"]
    done = subprocess.run([sys.executable, "-c", program, *options], capture_output=True, text=True, timeout=HANG_S)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert (found["completed"], found["failed"], found["total_output_tokens"]) == (12, 0, 96)


def gauge(service: Service, name: str) -> float:
    lines = [line for line in service.metrics().splitlines() if line.startswith(f"ray_vllm_{name}{{")]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


def running(service: Service) -> float:
    return gauge(service, "num_requests_running")


@pytest.mark.parametrize("stream", [True, False], ids=["streaming", "whole"])
def test_a_client_that_leaves_frees_its_place(service: Service, url: str, stream: bool) -> None:
    service.wait_for(lambda: running(service) == 0, "busy before")
    before = gauge(service, "generation_tokens_total")
    asked = {"model": MODEL, "prompt": "The sea", "max_tokens": LONG, "ignore_eos": True, "stream": stream}

    async def leave() -> None:
        async with httpx.AsyncClient(timeout=HANG_S) as client:
            task = asyncio.create_task(client.post(f"{url}/completions", json=asked))
            await asyncio.to_thread(service.wait_for, lambda: running(service) == 1, "it does not run")
            task.cancel()

    asyncio.run(leave())
    service.wait_for(lambda: running(service) == 0, "it still runs")
    assert gauge(service, "generation_tokens_total") - before < LONG


def test_a_fuzzer_finds_nothing_that_is_the_services_fault(
    service: Service, client: openai.OpenAI, tmp_path: Path
) -> None:
    stop, answers = threading.Event(), []

    def neighbour() -> None:
        while not stop.is_set():
            text = client.completions.create(model=MODEL, prompt="One, two, three,", max_tokens=4, temperature=0)
            answers.append(text.choices[0].text)

    thread = threading.Thread(target=neighbour)
    thread.start()
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{service.address}/openapi.json"]
    command += ["--checks", "not_a_server_error", "--phases", "coverage,fuzzing", "--continue-on-failure"]
    command += ["--request-timeout", str(HANG_S), "--max-time", str(FUZZ_S), "--no-color"]
    try:
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, timeout=FUZZ_S + 3 * HANG_S, check=False
        )
    finally:
        stop.set()
        thread.join(timeout=HANG_S)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert answers
    assert len(set(answers)) == 1
    assert "four" in answers[0]
