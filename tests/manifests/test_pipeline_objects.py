"""The pipeline as objects of Kubernetes is valid and is all that was compiled."""

import re

import pytest
import yaml

from launch.submission import CompiledPipeline
from manifests.check import problems
from manifests.objects import pipeline_objects
from tests.manifests.rendering import find, render


@pytest.fixture
def objects(compiled):
    return pipeline_objects(compiled, "what it does", "kubeflow")


def test_pipeline_objects_have_no_problem(objects):
    assert [problem for document in objects for problem in problems(document)] == []
    assert [document["kind"] for document in objects] == ["Pipeline", "PipelineVersion"]


def test_pipeline_version_is_named_by_its_content(compiled, objects):
    assert objects[1]["metadata"]["name"] == compiled.version_name
    changed = CompiledPipeline(compiled.name, compiled.text.replace("work", "play"))
    assert pipeline_objects(changed, "", "kubeflow")[1]["metadata"]["name"] != compiled.version_name


def test_pipeline_version_keeps_the_whole_compiled_text(compiled, objects):
    spec, platform = yaml.safe_load_all(compiled.text)
    assert objects[1]["spec"]["pipelineSpec"] == spec
    assert objects[1]["spec"]["platformSpec"] == platform


def test_problems_names_a_pipeline_spec_that_kfp_would_refuse(objects):
    objects[1]["spec"]["pipelineSpec"]["rooot"] = {}
    assert "rooot" in problems(objects[1])[0]


def _executor(version, platform=False):
    spec = version["spec"]["platformSpec"]["platforms"]["kubernetes"] if platform else None
    executors = (spec or version["spec"]["pipelineSpec"])["deploymentSpec"]["executors"]
    return executors["exec-train-model"]


EXECUTOR_BREACHES = {
    "unknown field": (lambda v: _executor(v)["container"].update(imagee="x"), "imagee"),
    "unknown field of a platform": (lambda v: _executor(v, True).update(nodeSelect={}), "nodeSel"),
    "no resources": (lambda v: _executor(v)["container"].pop("resources"), "resourceMemoryLimit"),
    "no limit": (
        lambda v: _executor(v)["container"]["resources"].pop("resourceMemoryLimit"),
        "exec-train-model: no resources.resourceMemoryLimit",
    ),
    "mutable tag": (lambda v: _executor(v)["container"].update(image="a/b:1"), "no fixed version"),
    "secret": (
        lambda v: _executor(v)["container"].update(env=[{"name": "A_TOKEN", "value": "hunter2"}]),
        "exec-train-model: env A_TOKEN: looks like a secret",
    ),
    "root": (
        lambda v: _executor(v, True)["securityContext"].update(runAsUser="0"),
        "may run as root",
    ),
    "maybe root": (lambda v: _executor(v, True).pop("securityContext"), "may run as root"),
}


@pytest.mark.parametrize("breach", EXECUTOR_BREACHES)
def test_problems_names_a_breach_inside_a_step(objects, breach):
    change, message = EXECUTOR_BREACHES[breach]
    change(objects[1])
    assert re.search(message, "\n".join(problems(objects[1])))


def test_every_step_has_the_label_that_the_network_policies_select(compiled):
    policy = find(render("existing"), "NetworkPolicy", "iceaggr-egress")
    (label,) = policy["spec"]["podSelector"]["matchLabels"].items()
    spec, platform = yaml.safe_load_all(compiled.text)
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert set(executors) == set(spec["deploymentSpec"]["executors"])
    for executor in executors.values():
        assert label in executor["podMetadata"]["labels"].items()
        assert executor["securityContext"]["runAsNonRoot"] is True
