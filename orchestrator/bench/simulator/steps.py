"""Single steps of a start in a Ray cluster, timed by themselves."""

from __future__ import annotations

import time
from typing import Any

import ray
from ray.util import placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

_CALLS = 500  # to the registry, at once
_TRANSFER_MIB = 64


def place_s(number: int = 64) -> float:
    """Seconds of Ray's control plane for a placement group, of several that are asked for together."""
    began = time.perf_counter()
    groups = [placement_group([{"CPU": 0.01}]) for _ in range(number)]
    for group in groups:
        group.wait(60.0)
    seconds = time.perf_counter() - began
    for group in groups:
        remove_placement_group(group)
    return seconds / number


def ask_s(registry: Any) -> float:
    """Seconds of the registry's for one answer; there are graphs to be had."""
    (key, *_) = ray.get(registry.entries.remote())
    began = time.perf_counter()
    ray.get([registry.acquire.remote(key, {}, str(i), 60.0) for i in range(_CALLS)])
    return (time.perf_counter() - began) / _CALLS


def transfer_s() -> float:
    """Seconds for a MiB from node to node; here both ends share the machine."""
    here, *_, there = [node["NodeID"] for node in ray.nodes() if node["Alive"]]

    def on(node: str, work: Any) -> Any:
        strategy = NodeAffinitySchedulingStrategy(node, soft=False)
        return ray.remote(work).options(num_cpus=0, scheduling_strategy=strategy)

    def make() -> bytes:
        return bytes(_TRANSFER_MIB << 20)

    def pull(refs: list[Any]) -> float:
        began = time.perf_counter()
        ray.get(refs[0])
        return time.perf_counter() - began

    seconds = []
    for _ in range(3):
        ref = on(here, make).remote()
        ray.wait([ref], fetch_local=False)
        seconds.append(ray.get(on(there, pull).remote([ref])))
    return float(min(seconds)) / _TRANSFER_MIB
