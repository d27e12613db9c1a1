"""What Ray Serve LLM is given: the fleet's arguments, and models of one's own. In a file of its own for its imports."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.config import sources
from orchestrator.engine.arguments import engine_args
from orchestrator.errors import ConfigError
from orchestrator.serve import app as serve_app
from orchestrator.weights.settings import Weights
from tests.unit import own_folder


def test_a_service_gives_vllm_what_a_fleet_does(make_app) -> None:
    app = make_app("+engine.extra.additional_config={theirs:1}", "+engine.extra.attention_backend=CPU_MLA")
    given = serve_app.llm_config(app, "/some/model").engine_kwargs
    named = {"served_model_name"}  # Ray Serve LLM has a way of its own
    assert given == {name: value for name, value in engine_args(app).items() if name not in named}


def test_a_service_serves_them_beside_ours(tmp_path: Path) -> None:
    where = f"hydra.searchpath=['file://{own_folder.make(tmp_path / 'own')}']"
    cells = serve_app.cells(sources.composed([where, "+serve.models={mine:{max_replicas:2},tiny_qwen3:{}}"]))
    assert [cell.model.name for cell in cells] == ["mine", "tiny_qwen3"]
    assert [cell.serve.max_replicas for cell in cells] == [2, 1]
    assert cells[0].model.tiny["num_hidden_layers"] == 2
    assert cells[0].model.tiny["model_type"] == "llama"


def test_the_front_has_as_many_replicas_as_asked(make_app) -> None:
    app = make_app("engine=fake", "model=tiny_llama", "serve.ingress_replicas=3")
    made = serve_app.build(app, {"tiny_llama": "/some/model"})._bound_deployment
    assert (made.name, made.num_replicas) == ("ingress", 3)


def test_what_is_known_of_starts_is_the_policys_first_guess(make_app, monkeypatch) -> None:
    made: list[float] = []
    plain = serve_app.llm_config

    def noting(app, folder, weights):
        made.append(app.serve.start_s)
        return plain(app, folder, weights)

    monkeypatch.setattr(serve_app, "llm_config", noting)
    app = make_app("engine=fake", "+serve.models={tiny_llama:{},tiny_qwen3:{}}", "serve.start_s=33")
    serve_app.build(app, {"tiny_llama": "/a", "tiny_qwen3": "/b"}, {"tiny_qwen3": 7.5})
    assert made == [33.0, 7.5]


def test_a_model_that_travels_has_one_path_and_is_told_to_the_replicas(make_app, tmp_path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (model / name).write_text("{}")
    words = ("model=local_path", "model.name=m", f"model.id={model}", "cold_start.share_weights=true")
    app = make_app(*words, f"state_dir={tmp_path}")
    prepared = serve_app.prepare(app, lambda who, what: None)
    weights = prepared.weights["m"]
    assert prepared.folders == {"m": weights.path}
    ahead = serve_app.build(app, prepared.folders, weights=prepared.weights)._bound_deployment.init_kwargs["ahead"]
    assert list(ahead.models.values()) == [weights]
    llm = serve_app.llm_config(app, weights.path, weights)
    assert Weights.from_plain(json.loads(json.dumps(llm.callback_config.callback_kwargs["model_files"]))) == weights
    needed = replace(weights, needed="its weights are quantised (config.json)")
    assert Weights.from_plain(json.loads(json.dumps(needed.plain()))) == needed
    with pytest.raises(ConfigError, match="one path for all nodes"):
        serve_app.prepare(make_app(*words, "weights.folder=$DISK/w"), lambda who, what: None)
