"""Check rendered manifests: `python -m manifests.check FILE...`, exit code 1 if anything is wrong.

Every object must fit the strict schema of its kind, where an unknown field is an error. Schemas of
Kubernetes itself come with kubernetes-validate, those of other kinds lie in manifests/schemas/. For
the house rules see `manifests.pods` and `_object_problems`.
"""

from __future__ import annotations

if __name__ == "__main__":
    from iceaggr.entry import begin

    begin()

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml
from google.protobuf import json_format
from kfp.kubernetes import kubernetes_executor_config_pb2
from kfp.pipeline_spec import pipeline_spec_pb2

from manifests.pods import (
    SECRET_NAME,
    holds_secret,
    image_problems,
    pod_problems,
    variable_problems,
)
from manifests.settings import setting_problems

KUBERNETES_VERSION = "1.32"
_SCHEMAS = Path(__file__).parent / "schemas"
_CLUSTER_WIDE = ("ClusterRole", "ClusterRoleBinding", "ClusterTrainingRuntime")
# whoever deletes a rendered file deletes these with all that lies in them
_HOLDS_DATA = (
    *("Namespace", "PersistentVolumeClaim", "PersistentVolume", "StorageClass"),
    "CustomResourceDefinition",
)


def problems(document: dict[str, Any]) -> list[str]:
    """List what is wrong with one object; each line begins with its kind and name."""
    kind = document.get("kind", "?")
    name = (document.get("metadata") or {}).get("name", "?")
    found = list(_schema_problems(document))
    if not found:
        found = [*_object_problems(document)]
        for template in _job_templates(document):
            found += problems(template)
        found += pod_problems(document)
    return [f"{kind} {name}: {problem}" for problem in found]


def _schema_problems(document: dict[str, Any]) -> Iterator[str]:
    own = _SCHEMAS / f"{document.get('kind', '').lower()}.json"
    try:
        if own.exists():
            jsonschema.validate(document, json.loads(own.read_text(encoding="utf-8")))
        else:
            kubernetes_validate.validate(document, KUBERNETES_VERSION, strict=True)
    except jsonschema.ValidationError as error:
        where = ".".join(str(part) for part in error.path)
        yield f"{where}: {error.message[:300]}"
    except kubernetes_validate.SchemaNotFoundError as error:
        yield error.message
    if document.get("kind") == "PipelineVersion":
        yield from _pipeline_problems(document.get("spec", {}))


def _pipeline_problems(spec: dict[str, Any]) -> Iterator[str]:
    pipeline, platform = spec.get("pipelineSpec", {}), spec.get("platformSpec", {})
    yield from _unknown_fields("pipelineSpec", pipeline, pipeline_spec_pb2.PipelineSpec())
    yield from _unknown_fields("platformSpec", platform, pipeline_spec_pb2.PlatformSpec())
    # both specs hold their executors as any structure: each has a message of its own
    deployment = pipeline.get("deploymentSpec", {})
    yield from _unknown_fields(
        "pipelineSpec.deploymentSpec", deployment, pipeline_spec_pb2.PipelineDeploymentConfig()
    )
    for name, executor in _platform_executors(spec).items():
        where = f"platformSpec executor {name}"
        message = kubernetes_executor_config_pb2.KubernetesExecutorConfig()
        yield from _unknown_fields(where, executor, message)


def _unknown_fields(where: str, document: dict[str, Any], message: Any) -> Iterator[str]:
    try:
        json_format.ParseDict(document, message)
    except json_format.ParseError as error:
        yield f"spec.{where}: {error}"


def _platform_executors(spec: dict[str, Any]) -> dict[str, Any]:
    kubernetes = spec.get("platformSpec", {}).get("platforms", {}).get("kubernetes", {})
    executors: dict[str, Any] = kubernetes.get("deploymentSpec", {}).get("executors", {})
    return executors


def _executor_problems(spec: dict[str, Any]) -> Iterator[str]:
    """Images, resources and secrets of the steps; root or not is a matter of the platform."""
    platform = _platform_executors(spec)
    for name, executor in spec["pipelineSpec"]["deploymentSpec"]["executors"].items():
        container = executor["container"]
        yield from image_problems(name, container["image"])
        for field in ("resourceCpuRequest", "resourceMemoryRequest", "resourceMemoryLimit"):
            if not container.get("resources", {}).get(field):
                yield f"{name}: no resources.{field}"
        for variable in container.get("env", []):
            yield from (f"{name}: {words}" for words in variable_problems(variable))
        security = platform.get(name, {}).get("securityContext", {})
        if not security.get("runAsNonRoot") or security.get("runAsUser") in (0, "0"):
            yield f"{name}: may run as root"


def _object_problems(document: dict[str, Any]) -> Iterator[str]:
    kind, metadata = document["kind"], document["metadata"]
    if kind == "Secret":
        yield "secrets are made by the operator, see docs/runbook.md"
    if kind in _HOLDS_DATA:
        yield "deleting this file would delete what it holds: apply it apart"
    if kind == "StatefulSet":
        yield from _claim_problems(document["spec"])
    if kind not in (*_CLUSTER_WIDE, *_HOLDS_DATA) and not metadata.get("namespace"):
        yield "no namespace"
    if kind == "ConfigMap":
        for key, value in (document.get("data") or {}).items():
            if SECRET_NAME.search(key) or holds_secret(value):
                yield f"data.{key}: a secret in a ConfigMap?"
    if kind in ("Role", "ClusterRole"):
        for rule in document.get("rules") or []:
            yield from _rule_problems(rule)
    if kind == "PipelineVersion":
        yield from _executor_problems(document["spec"])


def _claim_problems(spec: dict[str, Any]) -> Iterator[str]:
    field = "persistentVolumeClaimRetentionPolicy"
    policy = spec.get(field) or {}
    for when in ("whenDeleted", "whenScaled"):
        if spec.get("volumeClaimTemplates") and policy.get(when) != "Retain":
            yield f"{field}.{when} is not Retain: the data would go with it"


def _rule_problems(rule: dict[str, Any]) -> Iterator[str]:
    if any("*" in values for values in rule.values()):
        yield f"rights without limit: {rule}"
    if "secrets" in rule.get("resources", []) and not rule.get("resourceNames"):
        yield "may read every secret of the namespace"


def _job_templates(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Give the jobs of a training runtime as the Jobs that they become."""
    if document["kind"] == "ClusterTrainingRuntime":
        for job in document["spec"]["template"]["spec"]["replicatedJobs"]:
            yield {
                "apiVersion": "batch/v1",
                "kind": "Job",
                "metadata": {"name": job["name"], "namespace": "of-the-run"},
                "spec": job["template"]["spec"],
            }


def _objects(path: str) -> tuple[list[dict[str, Any]], list[str]]:
    """Read the objects of a file; and what is wrong with it, if it holds anything else."""
    try:
        documents = [
            d for d in yaml.safe_load_all(Path(path).read_text(encoding="utf-8")) if d is not None
        ]
    except (OSError, ValueError, yaml.YAMLError) as error:
        words = getattr(error, "strerror", None) or " ".join(str(error).split())
        return [], [f"{path}: not a file of YAML: {words}"]
    objects = [d for d in documents if isinstance(d, dict) and {"apiVersion", "kind"} <= set(d)]
    found = [] if len(objects) == len(documents) else [f"{path}: holds what is no object"]
    return objects, found if documents else [f"{path}: no object in it"]


def main(paths: list[str]) -> int:
    """Check files; prints what is wrong."""
    n_objects = 0
    found: list[str] = []
    for path in paths:
        documents, unreadable = _objects(path)
        n_objects += len(documents)
        found += unreadable
        found += [f"{path}: {problem}" for document in documents for problem in problems(document)]
        found += [f"{path}: {problem}" for problem in setting_problems(documents)]
    print(*found, f"checked {n_objects} objects, {len(found)} problems", sep="\n")
    return 1 if found or not n_objects else 0


if __name__ == "__main__":
    from iceaggr.entry import run

    run(lambda: main(sys.argv[1:]))
