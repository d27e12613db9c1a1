"""Own models and engines, by --config-dir and by Hydra's search path: for a job, for a sweep's cells, for a service."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import yaml

from orchestrator.config import sources
from orchestrator.errors import ConfigError
from tests.unit import own_folder
from tests.unit.commands import finish, run, start

MINE = ["model=mine", "engine=mine"]


@pytest.fixture(params=["--config-dir={}", "hydra.searchpath=['file://{}']"], ids=["config-dir", "searchpath"])
def own(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The word that names the folder, whose name needs quotes."""
    return request.param.format(own_folder.make(tmp_path / "my, own=x"))


def composed(*words: str) -> dict:
    done = run("-m", "orchestrator", "run", *words, "--cfg", "job")
    assert done.returncode == 0, done.stderr
    return yaml.safe_load(done.stdout)


def test_a_job_finds_them(own: str) -> None:
    found = composed(own, *MINE)
    assert (found["model"]["name"], found["model"]["tiny"]["num_hidden_layers"]) == ("mine", 2)
    assert (found["engine"]["kind"], found["engine"]["max_num_seqs"]) == ("fake", 3)


def test_every_cell_of_a_sweep_is_told_of_them(own: str, tmp_path: Path) -> None:
    parallel = min(2, len(os.sched_getaffinity(0))) if own.startswith("--") else 1
    words = ["-m", own, *MINE, "replicas=1,2", f"sweep.parallel={parallel}", f"hydra.sweep.dir={tmp_path}/out"]
    env = {**os.environ, "ORCHESTRATOR_HOME": str(tmp_path), "PYTHONPATH": "."}
    code, result, err = finish(start("tests/commands/stub_sweep.py", *words, env=env))
    assert code == 0, err
    assert len(result["cells"]) == 2
    asked = [json.loads((tmp_path / "out" / str(i) / "stub.json").read_text())["words"] for i in range(2)]
    assert all(set(MINE) < set(words) for words in asked)
    assert asked[0][0] == asked[1][0]  # where they are; tests/ray/test_sweeps.py has cells that look there
    found = composed(*asked[1])
    assert (found["model"]["name"], found["engine"]["max_num_seqs"], found["replicas"]) == ("mine", 3, 2)


def test_a_primary_configuration_of_ones_own_reaches_cells(tmp_path: Path) -> None:
    folder = own_folder.make(tmp_path / "own")
    (folder / "all.yaml").write_text("defaults:\n  - config\n  - _self_\nreplicas: 7\n")
    words = ["-m", f"--config-dir={folder}", "--config-name=all", *MINE, f"hydra.sweep.dir={tmp_path}/out"]
    env = {**os.environ, "ORCHESTRATOR_HOME": str(tmp_path), "PYTHONPATH": "."}
    code, _, err = finish(start("tests/commands/stub_sweep.py", *words, env=env))
    assert code == 0, err
    assert composed(*json.loads((tmp_path / "out" / "0" / "stub.json").read_text())["words"])["replicas"] == 7


@pytest.fixture
def service(tmp_path: Path):
    """A service of our models and one's own, composed as for Serve's config file."""

    def make(*overrides: str):
        where = f"hydra.searchpath=['file://{own_folder.make(tmp_path / 'own')}']"
        return sources.composed([f"state_dir={tmp_path}", where, *overrides])

    return make


@pytest.mark.parametrize("name", ["nothing", "../model/mine", "/etc/passwd", "..", "mine.yaml"])
def test_a_services_models_are_names_of_files_and_no_paths(service, name: str) -> None:
    app = service()
    app.serve.models = {name: {}}
    with pytest.raises(ConfigError, match="There is no model") as caught:
        sources.model(name, app.search_path)
    assert "mine" in caught.value.hint
    assert "own/model" in str(caught.value)


def test_what_is_wrong_with_a_model_of_ones_own_is_told(service, tmp_path: Path) -> None:
    app = service()
    (tmp_path / "own" / "model" / "empty.yaml").write_text("name: empty\n")
    with pytest.raises(ConfigError, match=r"model\.id is empty"):
        sources.model("empty", app.search_path)
    (tmp_path / "own" / "model" / "odd.yaml").write_text("name: odd\nnonsense: 1\n")
    with pytest.raises(ConfigError, match="nonsense"):
        sources.model("odd", app.search_path)


def test_the_search_path_is_hydras_to_set(make_app) -> None:
    with pytest.raises(ConfigError, match="search_path is no setting"):
        make_app("search_path=[file:///x]")
