"""Other ways to serve: a Serve config file with two models, and the callback alone in an application of Ray's own."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import yaml
from pyarrow import fs
from safetensors.numpy import save

from orchestrator import models
from tests import s3_server
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
        lines, phases = from_zero(f"http://127.0.0.1:{port}", "tiny_qwen3")
        assert any(line.startswith(": the first replica starts") for line in lines), lines
        assert len(phases) > 1, phases
        for model in ("tiny_llama", "tiny_qwen3"):
            answer = httpx.post(f"{url}/completions", json={"model": model, **BODY}, timeout=HANG_S)
            assert answer.status_code == 200, answer.text
            assert answer.json()["usage"]["completion_tokens"] == 2
        page = httpx.get(f"http://127.0.0.1:{port}/status", timeout=HANG_S).text
        assert "tiny_llama" in page
        assert "tiny_qwen3" in page
    finally:
        end(service)
    mine.check()


def from_zero(root: str, model: str) -> tuple[list[str], set[str]]:
    """The lines of a stream from a model without a replica, and how far its start was said to be meanwhile."""
    lines: list[str] = []
    seen: set[str] = set()

    def ask() -> None:
        body = {"model": model, "stream": True, **BODY}
        with httpx.stream("POST", f"{root}/v1/completions", json=body, timeout=HANG_S) as answer:
            lines.extend(answer.iter_lines())

    asking = threading.Thread(target=ask)
    asking.start()
    while asking.is_alive():
        found = httpx.get(f"{root}/status.json", timeout=HANG_S).json()["starting"]
        seen |= {start["phase"] for start in found if start["model"] == model}
        asking.join(0.2)
    return lines, seen


CALLBACK_ALONE = """
import sys, ray
from ray import serve
from ray.serve.config import RequestRouterConfig
from ray.serve.llm import LLMConfig, build_openai_app
from orchestrator.graph_cache import registry_actor

PREFIX = "ray.serve.llm.request_router.PrefixCacheAffinityRouter"
model, store, port, loras = sys.argv[1:]
ray.init(address="local", num_cpus=4, include_dashboard=False)
serve.start(http_options={"host": "127.0.0.1", "port": int(port)})
llm = LLMConfig(
    model_loading_config={"model_id": "tiny", "model_source": model},
    accelerator_config={"kind": "cpu"},
    placement_group_config={"bundles": [{"CPU": 1}]},
    engine_kwargs={"max_model_len": 256, "dtype": "float32", "max_num_batched_tokens": 256,
                   "kv_cache_memory_bytes": 64 << 20, **({"enable_lora": True, "max_lora_rank": 8} if loras else {})},
    lora_config={"dynamic_lora_loading_path": loras, "max_num_adapters_per_replica": 2} if loras else None,
    deployment_config={
        "num_replicas": 2,
        "ray_actor_options": {"num_cpus": 0},
        **({"request_router_config": RequestRouterConfig(request_router_class=PREFIX)} if loras else {}),
    },
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


@contextmanager
def callback_alone(model: str, folder: Path, mine: Footprint, loras: str = "", **more: str) -> Iterator[Application]:
    """That application, with LoRA adapters and prefix-aware routing if there are adapters; it serves."""
    port, log = free_port(), folder / "log"
    command = [sys.executable, "-c", CALLBACK_ALONE, model, str(folder / "graphs"), str(port), loras]
    environment = mine.environment(HF_HUB_OFFLINE="1", **more)
    with log.open("w") as out:
        program = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=out, text=True
        )
        try:
            assert program.stdout
            assert program.stdout.readline() == "SERVING\n", log.read_text()[-3000:]
            yield Application(program, f"http://127.0.0.1:{port}/v1/completions", log)
        finally:
            end(program)


@dataclass
class Application:
    program: subprocess.Popen[str]
    url: str
    log: Path

    def texts(self, model: str) -> set[str]:
        """What several requests are answered; both replicas get some."""
        answers = [httpx.post(self.url, json={"model": model, **BODY}, timeout=HANG_S) for _ in range(8)]
        assert {answer.status_code for answer in answers} == {200}, answers[0].text
        return {answer.json()["choices"][0]["text"] for answer in answers}

    def ended(self) -> int:
        """How many entries its registry had."""
        assert self.program.stdin
        assert self.program.stdout
        self.program.stdin.write("\n")
        self.program.stdin.flush()
        what, number = self.program.stdout.readline().split()
        assert what == "ENTRIES", self.log.read_text()[-3000:]
        assert self.program.wait(timeout=HANG_S) == 0
        return int(number)


def test_the_callback_alone_shares_graphs_in_an_application_of_rays(
    make_app, state: str, tmp_path: Path, mine: Footprint
) -> None:
    model = models.resolve(make_app("model=tiny_llama").model, state)
    with callback_alone(model, tmp_path, mine) as application:
        assert len(application.texts("tiny")) == 1
        assert application.ended() == 1
        said = application.log.read_text()
    assert "graph cache compiled" in said
    assert "graph cache hit" in said or "graph cache waited" in said
    mine.check()


def test_lora_adapters_and_prefix_aware_routing_through_the_callback(
    make_app, state: str, tmp_path: Path, mine: Footprint
) -> None:
    """vLLM's CPU build compiles nothing where LoRA is on, so there is nothing to share, and the receipt says so."""
    model = models.resolve(make_app("model=tiny_llama").model, state)
    with s3_server.running() as port:
        amazon = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "access",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        storage, bucket = fs.FileSystem.from_uri(s3_server.uri(port, "loras"))
        storage.create_dir(bucket)
        for name, content in adapter(Path(model)).items():
            with storage.open_output_stream(f"{bucket}/tiny/other/{name}") as file:
                file.write(content)
        with callback_alone(model, tmp_path, mine, "s3://loras/tiny", **amazon) as application:
            (own,), (adapted,) = application.texts("tiny"), application.texts("tiny:other")
            assert own != adapted
            assert application.ended() == 0
            said = application.log.read_text()
    assert "graph cache stock (vLLM's compilation mode is NONE)" in said
    mine.check()


def adapter(model: Path) -> dict[str, bytes]:
    """A LoRA adapter with random weights, large enough to change what a model says: files and their content."""
    config, draw, rank = json.loads((model / "config.json").read_text()), np.random.default_rng(1), 8
    width = config["hidden_size"]
    values = config["num_key_value_heads"] * config["head_dim"]
    weights = {}
    for layer in range(config["num_hidden_layers"]):
        for name, size in (("q_proj", width), ("v_proj", values)):
            where = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            weights[f"{where}.lora_A.weight"] = draw.standard_normal((rank, width), dtype=np.float32) / 2
            weights[f"{where}.lora_B.weight"] = draw.standard_normal((size, rank), dtype=np.float32) / 2
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 16, "bias": "none"}
    about = {**settings, "target_modules": ["q_proj", "v_proj"], "base_model_name_or_path": "tiny"}
    return {"adapter_model.safetensors": save(weights), "adapter_config.json": json.dumps(about).encode()}


def wait_until_served(url: str, service: subprocess.Popen[bytes], log: Path) -> None:
    def served() -> bool:
        assert service.poll() is None, log.read_text()[-3000:]
        try:
            return httpx.get(url, timeout=HANG_S).is_success
        except httpx.HTTPError:
            return False

    wait_for(served, lambda: log.read_text()[-3000:], 0.5)
