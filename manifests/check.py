"""Check rendered manifests: `python -m manifests.check FILE...`, exit code 1 if anything is wrong.

Every object must fit the strict schema of its kind, where an unknown field is an error. Schemas of
Kubernetes itself come with kubernetes-validate, those of other kinds lie in manifests/schemas/. For
the house rules see `_pod_problems` and `_object_problems`.
"""

from __future__ import annotations

import json
import re
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

from iceaggr.errors import ConfigError
from launch.names import check_image
from manifests.settings import setting_problems

KUBERNETES_VERSION = "1.32"
_SCHEMAS = Path(__file__).parent / "schemas"
_POD_PATHS = {
    "Pod": "spec",
    "Deployment": "spec.template.spec",
    "StatefulSet": "spec.template.spec",
    "DaemonSet": "spec.template.spec",
    "Job": "spec.template.spec",
    "CronJob": "spec.jobTemplate.spec.template.spec",
}
_SERVERS = ("Deployment", "StatefulSet", "DaemonSet")
_CLUSTER_WIDE = ("Namespace", "ClusterRole", "ClusterRoleBinding", "ClusterTrainingRuntime")
# a tag of one number moves with each release below it
_IMAGE_VERSION = re.compile(r":v?\d+\.\d+[\w.-]*$|@sha256:[0-9a-f]{64}$")
_SECRET_NAME = re.compile(r"password|secret|token|(?<!public[-_])key|credential", re.IGNORECASE)
_SECRET_WORD = r"[\w-]*(?:password|passwd|secret|token|access[-_]key|api[-_]key|credential)[\w-]*"
# `name=value`, `name: value`, `--name value`; no path and no variable that Kubernetes fills in
_SECRET_VALUE = re.compile(
    rf"(?<![\w-])(?:{_SECRET_WORD} *[=:] *|--{_SECRET_WORD} +)(?![/$-])[^\s=:]", re.IGNORECASE
)
_URL_SECRET = re.compile(r"://[^\s/@:]*:(?!\$\()[^\s/@]+@")


def problems(document: dict[str, Any]) -> list[str]:
    """List what is wrong with one object; each line begins with its kind and name."""
    kind = document.get("kind", "?")
    name = document.get("metadata", {}).get("name", "?")
    found = list(_schema_problems(document))
    if not found:
        found = [*_object_problems(document)]
        for template in _job_templates(document):
            found += problems(template)
        if kind in _POD_PATHS:
            found += _pod_problems(_at(document, _POD_PATHS[kind]), server=kind in _SERVERS)
    return [f"{kind} {name}: {problem}" for problem in found]


def _schema_problems(document: dict[str, Any]) -> Iterator[str]:
    own = _SCHEMAS / f"{document.get('kind', '').lower()}.json"
    try:
        if own.exists():
            jsonschema.validate(document, json.loads(own.read_text()))
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
        yield from _image_problems(name, container["image"])
        for field in ("resourceCpuRequest", "resourceMemoryRequest", "resourceMemoryLimit"):
            if not container.get("resources", {}).get(field):
                yield f"{name}: no resources.{field}"
        for variable in container.get("env", []):
            yield from (f"{name}: {words}" for words in _variable_problems(variable))
        security = platform.get(name, {}).get("securityContext", {})
        if not security.get("runAsNonRoot") or security.get("runAsUser") in (0, "0"):
            yield f"{name}: may run as root"


def _object_problems(document: dict[str, Any]) -> Iterator[str]:
    kind, metadata = document["kind"], document["metadata"]
    if kind == "Secret":
        yield "secrets are made by the operator, see docs/runbook.md"
    if kind not in _CLUSTER_WIDE and not metadata.get("namespace"):
        yield "no namespace"
    if kind == "ConfigMap":
        for key, value in document.get("data", {}).items():
            if _SECRET_NAME.search(key) or _holds_secret(value):
                yield f"data.{key}: a secret in a ConfigMap?"
    if kind in ("Role", "ClusterRole"):
        for rule in document["rules"]:
            if "*" in rule["verbs"] + rule["resources"] + rule["apiGroups"]:
                yield f"rights without limit: {rule}"
            if "secrets" in rule["resources"] and not rule.get("resourceNames"):
                yield "may read every secret of the namespace"
    if kind == "PipelineVersion":
        yield from _executor_problems(document["spec"])


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


def _pod_problems(pod: dict[str, Any], *, server: bool) -> Iterator[str]:
    """Restricted pod security, least rights, limits, probes of servers, no secret in the clear."""
    security = pod.get("securityContext", {})
    if not security.get("runAsNonRoot") or not security.get("runAsUser"):
        yield "securityContext: runAsNonRoot and a runAsUser other than 0 are missing"
    if security.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield "securityContext.seccompProfile is not RuntimeDefault"
    if pod.get("automountServiceAccountToken") is not False:
        yield "automountServiceAccountToken is not false"
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.get(field):
            yield f"{field} is set"
    for volume in pod.get("volumes", []):
        if "hostPath" in volume:
            yield f"volume {volume['name']}: hostPath"
        if "emptyDir" in volume and not (volume["emptyDir"] or {}).get("sizeLimit"):
            yield f"volume {volume['name']}: no sizeLimit"
    for container in [*pod.get("initContainers", []), *pod["containers"]]:
        for problem in _container_problems(container, server=server):
            yield f"container {container['name']}: {problem}"


def _container_problems(container: dict[str, Any], *, server: bool) -> Iterator[str]:
    security = container.get("securityContext", {})
    if security.get("allowPrivilegeEscalation") is not False or security.get("privileged"):
        yield "securityContext.allowPrivilegeEscalation is not false"
    if security.get("runAsUser", 1) == 0 or security.get("runAsNonRoot", True) is False:
        yield "securityContext: runs as root"
    if "ALL" not in security.get("capabilities", {}).get("drop", []):
        yield "securityContext.capabilities: ALL are not dropped"
    if not security.get("readOnlyRootFilesystem"):
        yield "securityContext.readOnlyRootFilesystem is not true"
    for bound in ("requests", "limits"):
        for resource in ("cpu", "memory"):
            if resource not in container.get("resources", {}).get(bound, {}):
                yield f"no resources.{bound}.{resource}"
    if server:
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            if probe not in container:
                yield f"no {probe}"
    for variable in container.get("env", []):
        yield from _variable_problems(variable)
    # joined, so that an option and its value are seen together
    if _holds_secret(" ".join([*container.get("command", []), *container.get("args", [])])):
        yield "command and args: a secret in the clear?"
    yield from _image_problems("image", container.get("image", ""))


def _variable_problems(variable: dict[str, Any]) -> Iterator[str]:
    value = variable.get("value", "")
    named = _SECRET_NAME.search(variable["name"]) and value[:1] not in ("", "/", "$")
    if named or _holds_secret(value):
        yield f"env {variable['name']}: a secret in the clear?"


def _holds_secret(text: str) -> bool:
    return bool(_SECRET_VALUE.search(text) or _URL_SECRET.search(text))


def _image_problems(where: str, image: str) -> Iterator[str]:
    if not _IMAGE_VERSION.search(image):
        yield f"{where}: {image!r} names no version that stays: X.Y.Z or a digest"
        return
    try:
        check_image(image, where=where)
    except ConfigError as error:
        yield str(error)


def _at(document: dict[str, Any], path: str) -> dict[str, Any]:
    for part in path.split("."):
        document = document[part]
    return document


def main(paths: list[str]) -> int:
    """Check files; prints what is wrong."""
    n_objects = 0
    found: list[str] = []
    for path in paths:
        documents = list(yaml.safe_load_all(Path(path).read_text()))
        n_objects += len(documents)
        found += [f"{path}: {problem}" for document in documents for problem in problems(document)]
        found += [f"{path}: {problem}" for problem in setting_problems(documents)]
    print(*found, f"checked {n_objects} objects, {len(found)} problems", sep="\n")
    return 1 if found or not n_objects else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
