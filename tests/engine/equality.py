"""How far apart are stock vLLM and the plugin in bfloat16, and is it rounding?

python -m tests.engine.equality > docs/results/equality/bfloat16.json      (minutes)

Stock is started first. All others then have to say stock's tokens, whatever their logits are: so each step has the same
context in all of them, and what is compared is their logits. The token that one would have said is the largest logit.
"""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import yaml

from orchestrator import models
from orchestrator.cluster import provenance
from orchestrator.config import ModelConfig, ModelSource
from orchestrator.vllm_plugin.settings import KV_UPDATE_MODES
from tests.engine.ask import ROOT, Server

_TOKENS = 40
_Ask = Callable[..., list[dict[str, Any]]]
# The model with which a user first saw other tokens than stock's: MLA, all layers dense.
REPORTED = {"num_hidden_layers": 5, "hidden_size": 192, "first_k_dense_replace": 5}
_CASES: dict[
    str, tuple[str, dict[str, Any], tuple[int, ...]]
] = {  # name -> (model, what differs from it, seeds of the weights)
    "MLA, as reported": ("tiny_deepseek_v2", REPORTED, (0,)),
    "Llama": ("tiny_llama", {}, (0,)),
    "Mixtral": ("tiny_mixtral", {}, (0,)),
}


def tiny(name: str, state: str, seed: int = 0, **differs: Any) -> str:
    """The folder of a tiny model: conf/model's, with other sizes and another seed."""
    sizes = yaml.safe_load((ROOT / "conf" / "model" / f"{name}.yaml").read_text())["tiny"]
    config = ModelConfig(name=name, source=ModelSource.tiny, tiny={**sizes, **differs}, seed=seed)
    return models.resolve(config, state)


def piecewise(ask: _Ask, model: str, folder: Path, **more: Any) -> list[dict[str, Any]]:
    """Every mode of the plugin, cold and then warm."""
    wanted = [{"mode": mode, "cache": f"{folder}/{mode}", **more} for mode in KV_UPDATE_MODES for _ in range(2)]
    return ask(model, *wanted)


def same(starts: list[dict[str, Any]]) -> bool:
    """Do all say the same tokens, and leave the same bytes in every layer's KV cache?"""
    assert all("error" not in found for found in starts), starts
    return all((f["tokens"], f["kv"]) == (starts[0]["tokens"], starts[0]["kv"]) for f in starts)


def compare(ask: _Ask, model: str, folder: Path) -> dict[str, Any]:
    """Stock, stock without compile, and the plugin, in bfloat16 and on one context; distances in thousandths."""
    forced: list[list[int]] | None = None
    count = itertools.count()

    def start(mode: str, **more: Any) -> tuple[Any, dict[str, Any]]:
        logits = f"{folder}/{next(count)}.npy"
        # vLLM does not know `rounded` when it looks for a graph
        cache = f"{folder}/{mode}-rounded" if more.get("rounded") else f"{folder}/{mode}"
        one = {"mode": mode, "cache": cache, "dtype": "bfloat16", "max_tokens": _TOKENS}
        (found,) = ask(model, one | {"logits": logits, "forced": forced} | more)
        assert "error" not in found, found["error"]
        return numpy.load(logits), found

    stock, said = start("stock")
    forced = said["tokens"]
    (ours, _), (eager, _), (exact, _) = start("layer_index"), start("eager"), start("eager", dtype="float32")
    (rounded, stock_kv), (ours_rounded, ours_kv) = (start(mode, rounded=True) for mode in ("stock", "layer_index"))
    return {
        "ours_and_stock": _distance(ours, stock),
        "eager_and_stock": _distance(eager, stock),
        "float32_and": {n: _distance(x, exact) for n, x in (("ours", ours), ("stock", stock), ("eager", eager))},
        **_differing(ours, stock),
        "rounded": {
            "ours_and_stock": _distance(ours_rounded, rounded),
            "eager_and_stock": _distance(eager, rounded),
            "same_kv": ours_kv["kv"] == stock_kv["kv"],
            "other_kv_than_without": stock_kv["kv"] != said["kv"],
        },
    }


def _distance(one: Any, other: Any) -> dict[str, float]:
    difference = one - other
    return {
        "max": round(float(abs(difference).max()) * 1000, 2),
        "rms": round(float((difference**2).mean() ** 0.5) * 1000, 2),
    }


def _differing(ours: Any, stock: Any) -> dict[str, Any]:
    """For each prompt the first step with another token, and how far stock's two tokens are apart there."""
    found = []
    for prompt, (mine, theirs) in enumerate(zip(ours, stock, strict=True)):
        steps = numpy.nonzero(mine.argmax(-1) != theirs.argmax(-1))[0]
        if steps.size:
            step = int(steps[0])
            gap = theirs[step].max() - theirs[step][mine[step].argmax()]
            found.append({"prompt": prompt, "step": step, "gap": round(float(gap) * 1000, 2)})
    two = numpy.sort(stock, -1)[..., -2:]
    gaps = two[..., 1] - two[..., 0]
    return {
        "first_differing_steps": found,
        "usual_gap": round(float(numpy.median(gaps)) * 1000, 2),
        "largest_logit": round(float(abs(stock).max()) * 1000, 2),
    }


def main() -> None:
    server, cases = Server(), []
    with tempfile.TemporaryDirectory() as place:
        for number, (name, (model, differs, seeds)) in enumerate(_CASES.items()):
            for seed in seeds:
                print(f"{name}, seed {seed}", file=sys.stderr, flush=True)
                made = tiny(model, f"{place}/state", seed, **differs)
                folder = Path(place) / str(number)
                folder.mkdir(exist_ok=True)
                cases.append({"case": name, "seed": seed, **compare(server.ask, made, folder)})
                print(json.dumps(cases[-1]), file=sys.stderr, flush=True)
    server.close()
    print(
        json.dumps(
            {
                "command": "python -m tests.engine.equality",
                "machine": provenance.machine(),
                "unit": "thousandths of a logit",
                "cases": cases,
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
