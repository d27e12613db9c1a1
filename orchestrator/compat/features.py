"""What we build on names that vLLM, Ray and torch do not promise to keep, and what is lost without each of them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Feature:
    """Something of ours that is on while all its names are as we know them.

    Attributes:
        name: as findings and docs call it.
        off: what is lost without it.
    """

    name: str
    off: str


FORKS = Feature("forked engine processes", "EngineCore and workers import vLLM by themselves, for several seconds")
PRELOAD = Feature("preloaded modules", "each fork imports them by itself")
NO_DEVICE_AT_IMPORT = Feature("imports without a device", "with FlashInfer the zygote ends, and nothing is forked")
MODEL_LOOK = Feature("model class looked at in place", "vLLM starts a subprocess for it, for 9 s")
LOG = Feature("log as told", "the timeline lacks vLLM's own lines, and receipts cannot confirm a hit")
THREADS = Feature("threads of forks", "Inductor compiles in a fork with the threads that the zygote found")
CPU_PROBE = Feature("quick CPU probe", "Inductor builds and runs programs to learn what the CPU can do, for 8 s")
SHORT_PROFILE = Feature("short profile", "a warm start on CPU profiles the largest batch")
HEADERS = Feature("headers left alone", "a warm start on CPU preprocesses C++ headers for nothing, for half a second")
OVERLAP = Feature("overlap", "tokenizers are read before EngineCore starts, and again after its workers")
COMPILE_KEY = Feature("compile key", "graphs are not shared; every replica compiles")
NO_DEVICE = Feature("compile key without CUDA", "making the key may initialise CUDA in the replica's own process")
CACHE_KEY = Feature("cache key without placement", "replicas on other hosts and ports do not find each other's graphs")
LIBRARY_NAMES = Feature(
    "library names without folders", "where Python's environment is elsewhere, a hit compiles C++ anew"
)
PIECEWISE = Feature("piecewise compile on CPU", "vLLM compiles the whole graph on CPU; nothing can be shared")
LAYER_INDEX = Feature("layer-index", "vLLM's own split: every KV update is a piece of its own")
TRACE_ONCE = Feature("trace once", "every layer is traced")
SMALL_ARTIFACTS = Feature("small artifacts", "artifacts keep the traced graph, and grow with depth")
REFUSAL = Feature("refusal of another vLLM", "with an untested vLLM kv_update is ignored, and nobody says so")
SERVE_HOOK = Feature("serve hook", "replicas of a service start as vLLM starts them; no graphs are shared")
HEALTH = Feature("health by tokens", "a service may take a busy replica, whose answers take long, for dead")
SERVE_FRONT = Feature("serve", "jobs/serve.py does not start")
SCALING = Feature("simulated autoscaling", "bench=autoscale does not run")
SLOW_PROXY = Feature("slow proxies", "on a slow machine Ray Serve may kill its HTTP proxy again and again")
PRESTART = Feature("worker that waits", "each replica waits for its Ray worker, half a second and more")
RAY_PORTS = Feature("Ray start ports", "on a slow machine Ray may give up its start after 15 s")
TINY_MODELS = Feature("tiny models", "the models that are made on the spot have no tokenizer")
