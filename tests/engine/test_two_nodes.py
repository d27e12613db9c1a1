"""Real vLLM on two nodes with disks of their own: the second one loads what the first one compiled."""

from __future__ import annotations

import shutil
from pathlib import Path

from orchestrator import models
from tests.footprint import Footprint
from tests.ray.test_multi_node import Nodes, pytestmark

__all__ = ["pytestmark"]  # needs mount namespaces


def test_the_second_node_compiles_nothing(make_app, tmp_path: Path, mine: Footprint) -> None:
    nodes = Nodes(tmp_path, "engine=cpu", gpus=0)
    model = Path(models.resolve(make_app("model=tiny_llama").model, str(nodes.disk)))
    shutil.copytree(model.parent, nodes.other / "models")
    nodes.start()
    try:
        result = nodes.run("replicas=2", "cluster.placement_strategy=SPREAD")
        ready = [disk for disk in (nodes.disk, nodes.other) if list(disk.glob("orchestrator-zygote-*/*.sock"))]
    finally:
        nodes.stop()
    first, second = result["replicas"]
    assert (first["receipt"]["outcome"], first["engine"]["compiled"]) == ("compiled", 1)
    assert (second["receipt"]["outcome"], second["receipt"]["source"]) == ("hit", "memory")
    assert (second["engine"]["loaded"], second["engine"]["compiled"]) == (1, 0)
    assert result["same_tokens"]
    assert ready == [nodes.disk, nodes.other]  # each replica is a fork of its node's zygote
    mine.check()
