"""The files under deploy/: right by their own schemas, and in step with the project."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import ray.autoscaler
import yaml
from ray.serve.schema import ServeDeploySchema

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"


def fields(required: str = "", **known: Any) -> dict[str, Any]:
    """An object with these fields, and no others."""
    return {
        "type": "object",
        "properties": known,
        "required": required.split(),
        "additionalProperties": False,
    }


TEXT, WHOLE, FLAG, ANY = {"type": "string"}, {"type": "integer"}, {"type": "boolean"}, {"type": "object"}
TEXTS = {"type": "object", "additionalProperties": TEXT}
GROUP = {"rayStartParams": TEXTS, "template": ANY}
# The fields of KubeRay's ray.io/v1 types (ray-operator/apis/ray/v1/*_types.go); pods are checked by Kubernetes' own.
CLUSTER = fields(
    "headGroupSpec",
    headGroupSpec=fields("rayStartParams template", serviceType=TEXT, headService=ANY, enableIngress=FLAG, **GROUP),
    workerGroupSpecs={
        "type": "array",
        "items": fields(
            "groupName minReplicas maxReplicas rayStartParams template",
            groupName=TEXT, replicas=WHOLE, minReplicas=WHOLE, maxReplicas=WHOLE, numOfHosts=WHOLE, scaleStrategy=ANY,
            **GROUP,
        ),
    },
    rayVersion=TEXT, enableInTreeAutoscaling=FLAG, autoscalerOptions=ANY, headServiceAnnotations=TEXTS, suspend=FLAG,
)  # fmt: skip
KINDS = {
    "RayService": fields(
        "serveConfigV2 rayClusterConfig", serveConfigV2=TEXT, rayClusterConfig=CLUSTER, serveService=ANY
    ),
    "RayJob": fields(
        "entrypoint rayClusterSpec", entrypoint=TEXT, rayClusterSpec=CLUSTER, runtimeEnvYAML=TEXT, suspend=FLAG,
        shutdownAfterJobFinishes=FLAG, ttlSecondsAfterFinished=WHOLE, backoffLimit=WHOLE, submissionMode=TEXT,
    ),
}  # fmt: skip
MANIFESTS = sorted(DEPLOY.glob("kuberay/*.yaml"))


def checked(file: Path) -> dict[str, Any]:
    found = yaml.safe_load(file.read_text())
    assert found["apiVersion"] == "ray.io/v1"
    jsonschema.validate(found["spec"], KINDS[found["kind"]])
    return found


def groups(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = manifest["spec"].get("rayClusterConfig") or manifest["spec"]["rayClusterSpec"]
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


@pytest.mark.parametrize("file", MANIFESTS, ids=lambda f: f.name)
def test_kuberay_manifests(file: Path) -> None:
    manifest = checked(file)
    for group in groups(manifest):
        pod = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}, "template": group["template"]}
        kubernetes_validate.validate(pod, "1.34", strict=True)
        mounted = {m["name"] for c in group["template"]["spec"]["containers"] for m in c.get("volumeMounts", ())}
        assert mounted <= {volume["name"] for volume in group["template"]["spec"].get("volumes", ())}
    assert '"ray[data,default,serve]==2.60.0"' in (ROOT / "pyproject.toml").read_text()
    assert "rayVersion: 2.60.0" in file.read_text()


def test_a_misspelt_field_is_noticed() -> None:
    manifest = yaml.safe_load(MANIFESTS[0].read_text())
    manifest["spec"]["entrypont"] = manifest["spec"].pop("entrypoint", "")
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(manifest["spec"], KINDS[manifest["kind"]])


def overrides_of(serve: dict[str, Any]) -> list[str]:
    (application,) = ServeDeploySchema.model_validate(serve).applications
    assert application.import_path == "orchestrator.serve.app:application"
    return list(application.args["overrides"])


def commands(manifest: dict[str, Any]) -> list[list[str]]:
    """The overrides in a manifest: of its service, or of each cell of its sweep."""
    if manifest["kind"] == "RayService":
        return [overrides_of(yaml.safe_load(manifest["spec"]["serveConfigV2"]))]
    words = [w for w in manifest["spec"]["entrypoint"].split() if "=" in w]
    return [[re.sub(r",.*", "", w) for w in words], [re.sub(r"=.*,", "=", w) for w in words]]


def test_every_override_in_them_is_one(make_app) -> None:
    found = [line for file in MANIFESTS for line in commands(checked(file))]
    found.append(overrides_of(yaml.safe_load((DEPLOY / "serve.yaml").read_text())))
    assert len(found) == 4
    for line in found:
        assert make_app(*line).model.name


def test_the_ray_cluster_file() -> None:
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    jsonschema.validate(yaml.safe_load((DEPLOY / "cluster.yaml").read_text()), schema)


@pytest.mark.parametrize("file", sorted(DEPLOY.glob("Dockerfile.*")), ids=lambda f: f.name)
def test_dockerfiles(file: Path) -> None:
    lines = re.sub(r"\\\n", " ", file.read_text()).splitlines()
    steps = [line.split(maxsplit=1) for line in lines if line.strip() and not line.startswith("#")]
    names = [name for name, _ in steps]
    assert names[0] == "FROM"
    assert names.index("USER") < names.index("ENTRYPOINT")  # not as root
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for name, rest in steps:
        if name == "COPY":
            *sources, _ = rest.split()
            assert all((ROOT / source).exists() for source in sources), rest
            assert not set(sources) & set(ignored)
        if name == "ENTRYPOINT":
            program = json.loads(rest)[1]
            assert (ROOT / program.removeprefix("/opt/orchestrator/")).is_file()
    lock = (ROOT / f"requirements-{file.suffix[1:]}.lock").read_text()
    makefile = (ROOT / "Makefile").read_text()
    for pinned in re.findall(r"torch==\S+", file.read_text()):
        assert pinned in lock or pinned in makefile
