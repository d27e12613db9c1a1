"""Ahead-of-time compile with real vLLM: a later cluster only loads; and what vLLM does not take is told as unused."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest

from orchestrator import models
from orchestrator.graph_cache import bundle
from orchestrator.graph_cache.store import Store
from tests.engine.test_sharing import job
from tests.footprint import Footprint

LIMITS = bundle.Limits(1 << 30, 10_000)


def test_warm_then_a_later_cluster_loads_then_an_artifact_vllm_does_not_take(tmp_path: Path, mine: Footprint) -> None:
    home = Path(os.environ.get("ORCHESTRATOR_HOME", Path.home() / ".cache" / "orchestrator"))
    store, key_file = f"{tmp_path}/graphs", f"{tmp_path}/signing.key"
    where = ["model=tiny_llama", "graph_cache=local", f"graph_cache.store={store}", f"graph_cache.key_file={key_file}"]
    where += [f"graph_cache.node_folder={tmp_path}/node", f"state_dir={home}"]

    code, warmed, err = job(mine, "jobs/warm.py", *where, f"hydra.run.dir={tmp_path}/warm", cache=None)
    assert code == 0, err
    assert (warmed["outcomes"], warmed["published"], warmed["kv_parity"]) == (["compiled", "hit"], True, True)
    assert warmed["kv_tokens"][0] == warmed["kv_tokens"][1] > 0

    misplace(Store(store), warmed["key"], Path(key_file), tmp_path / "misplaced")
    single = [*where, "replicas=1", f"hydra.run.dir={tmp_path}/run"]
    code, _, err = job(mine, "jobs/run.py", *single, cache=None)
    assert code == 0, err
    (replica,) = json.loads((tmp_path / "run" / "result.json").read_text())["replicas"]
    assert replica["receipt"]["outcome"] == "unused"
    assert replica["receipt"]["reason"] == "vLLM looked for its graphs under another name"
    assert replica["receipt"]["published"]
    assert replica["engine"]["compiled"] == 1
    mine.check()


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_mixtral", "tiny_deepseek_v2"])
def test_graphs_compiled_without_weights_are_the_models(
    name: str, make_app, state: str, tmp_path: Path, mine: Footprint
) -> None:
    whole = Path(models.resolve(make_app(f"model={name}").model, state))
    bare = tmp_path / "bare"
    shutil.copytree(whole, bare, ignore=shutil.ignore_patterns("*.safetensors"))  # none can be read
    settings = ["graph_cache=local", f"graph_cache.store={tmp_path}/graphs", f"graph_cache.key_file={tmp_path}/key"]
    settings += [f"graph_cache.node_folder={tmp_path}/node", "model=local_path", f"model.name={name}", "replicas=1"]
    settings.append("model.dtype=float32")  # in bfloat16 stock rounds elsewhere on CPU

    def run(kind: str, folder: Path, *more: str) -> tuple[dict, Path]:
        out = tmp_path / "-".join([kind, *more])
        words = [*settings, f"model.id={folder}", *more, f"hydra.run.dir='{out}'"]
        code, result, err = job(mine, f"jobs/{kind}.py", *words, cache=None)
        assert code == 0, err
        return result, out

    warmed, _ = run("warm", bare)
    assert (warmed["weights"], warmed["outcomes"]) == ("made up", ["compiled", "hit"])
    _, ours = run("run", whole)
    _, stock = run("run", whole, "fast_cold_start=false")
    ours, stock = (json.loads((out / "result.json").read_text()) for out in (ours, stock))
    (replica,) = ours["replicas"]
    assert (replica["receipt"]["outcome"], replica["receipt"]["key"]) == ("hit", warmed["key"])
    assert (replica["engine"]["loaded"], replica["engine"]["compiled"]) == (1, 0)
    assert tokens(ours) == tokens(stock)
    mine.check()


def tokens(result: dict) -> list:
    """What each prompt was answered with, token by token."""
    (answers,) = result["answers"].values()
    return [answer["token_ids"] for answer in answers]


def misplace(store: Store, key: str, key_file: Path, folder: Path) -> None:
    """Publish the same graphs, well signed, under a folder name that vLLM does not ask for."""
    signing = bundle.signing_key(str(key_file))
    found = store.load(key)
    assert found is not None
    manifest, payload = bundle.verify(memoryview(found.data), signing, key, LIMITS)
    bundle.install(payload, folder, LIMITS)
    (graphs,) = (folder / "torch_compile_cache" / "torch_aot_compile").iterdir()
    graphs.rename(graphs.with_name("0" * 64))
    kept = {k: v for k, v in asdict(manifest).items() if k not in ("payload_sha256", "payload_bytes", "files")}
    moved = bundle.pack(folder, [folder / "torch_compile_cache"], signing, kept)
    store.save(key, 2, moved)
