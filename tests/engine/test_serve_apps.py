"""Other ways to serve: a Serve config file with two models, and the callback alone in an application of Ray's own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import httpx
import yaml

from tests.conftest import ROOT
from tests.engine.test_sharing import end
from tests.footprint import Footprint
from tests.ray.ray_nodes import free_port
from tests.waiting import HANG_S, wait_for

BODY = {"prompt": "one", "max_tokens": 2, "temperature": 0}


def test_a_config_file_with_two_models_one_of_them_at_zero(tmp_path: Path, mine: Footprint) -> None:
    config = yaml.safe_load((ROOT / "deploy" / "serve.yaml").read_text())
    port = config["http_options"]["port"] = free_port()
    config["applications"][0]["args"]["overrides"] = [
        "+serve.models={tiny_llama:{},tiny_qwen3:{min_replicas:0}}",
        f"graph_cache.store={tmp_path}/graphs",
    ]
    (tmp_path / "serve.yaml").write_text(yaml.safe_dump(config))
    environment = mine.environment(RAY_ADDRESS="local")  # not a cluster that this machine remembers
    log = (tmp_path / "log").open("w")
    command = [str(Path(sys.executable).with_name("serve")), "run", str(tmp_path / "serve.yaml")]
    service = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, process_group=0)
    url = f"http://127.0.0.1:{port}/v1"
    try:
        wait_until_served(f"{url}/models", service, tmp_path / "log")
        served = httpx.get(f"{url}/models", timeout=HANG_S).json()["data"]
        assert {m["id"] for m in served} == {"tiny_llama", "tiny_qwen3"}
        for model in ("tiny_llama", "tiny_qwen3"):  # the second one has no replica until it is asked for
            answer = httpx.post(f"{url}/completions", json={"model": model, **BODY}, timeout=HANG_S)
            assert answer.status_code == 200, answer.text
            assert answer.json()["usage"]["completion_tokens"] == 2
        page = httpx.get(f"http://127.0.0.1:{port}/status", timeout=HANG_S).text
        assert "tiny_llama" in page
        assert "tiny_qwen3" in page
    finally:
        end(service)
    mine.check()


CALLBACK_ALONE = """
import sys, ray
from ray import serve
from ray.serve.llm import LLMConfig, build_openai_app
from orchestrator.graph_cache import registry_actor

model, store, port = sys.argv[1:]
ray.init(address="local", num_cpus=4, include_dashboard=False)
serve.start(http_options={"host": "127.0.0.1", "port": int(port)})
llm = LLMConfig(
    model_loading_config={"model_id": "tiny", "model_source": model},
    accelerator_config={"kind": "cpu"},
    placement_group_config={"bundles": [{"CPU": 1}]},
    engine_kwargs={"max_model_len": 256, "dtype": "float32", "max_num_batched_tokens": 256,
                   "kv_cache_memory_bytes": 64 << 20},
    deployment_config={"num_replicas": 2, "ray_actor_options": {"num_cpus": 0}},
    callback_config={
        "callback_class": "orchestrator.serve.callback.FastColdStart",
        "callback_kwargs": {"graph_cache": {"store": store, "key_file": store + ".key"}},
    },
)
serve.run(build_openai_app({"llm_configs": [llm]}))
print("SERVING", flush=True)
sys.stdin.readline()
(actor,) = registry_actor.running("orchestrator")
print("ENTRIES", len(ray.get(actor.entries.remote())), flush=True)
serve.shutdown()
"""


def test_the_callback_alone_shares_graphs_in_an_application_of_rays(
    make_app, state: str, tmp_path: Path, mine: Footprint
) -> None:
    from orchestrator import models

    model, port = models.resolve(make_app("model=tiny_llama").model, state), free_port()
    log, environment = tmp_path / "log", mine.environment(HF_HUB_OFFLINE="1")
    command = [sys.executable, "-c", CALLBACK_ALONE, model, str(tmp_path / "graphs"), str(port)]
    with log.open("w") as out:
        program = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=out, text=True
        )
        try:
            assert program.stdin
            assert program.stdout
            assert program.stdout.readline() == "SERVING\n", log.read_text()[-3000:]
            url = f"http://127.0.0.1:{port}/v1/completions"
            answers = [httpx.post(url, json={"model": "tiny", **BODY}, timeout=HANG_S).json() for _ in range(8)]
            program.stdin.write("\n")
            program.stdin.flush()
            assert program.stdout.readline() == "ENTRIES 1\n", log.read_text()[-3000:]
            assert program.wait(timeout=HANG_S) == 0
        finally:
            end(program)
    assert len({answer["choices"][0]["text"] for answer in answers}) == 1
    said = log.read_text()
    assert "graph cache compiled" in said
    assert "graph cache hit" in said or "graph cache waited" in said
    mine.check()


def wait_until_served(url: str, service: subprocess.Popen[bytes], log: Path) -> None:
    def served() -> bool:
        assert service.poll() is None, log.read_text()[-3000:]
        try:
            return httpx.get(url, timeout=HANG_S).is_success
        except httpx.HTTPError:
            return False

    wait_for(served, lambda: log.read_text()[-3000:], 0.5)
