"""Check rendered manifests: `python -m manifests.check FILE...`, exit code 1 if anything is wrong.

Every object must fit the strict schema of its kind, where an unknown field is an error. Schemas of
Kubernetes itself come with kubernetes-validate, those of other kinds lie in manifests/schemas/. For
the house rules see `_pod_problems` and `_object_problems`.
"""

from __future__ import annotations

if __name__ == "__main__":
    from iceaggr.entry import begin

    begin()

import difflib
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml
from google.protobuf import json_format
from kfp.kubernetes import kubernetes_executor_config_pb2
from kfp.pipeline_spec import pipeline_spec_pb2

from iceaggr.config import load_config
from iceaggr.errors import ConfigError
from iceaggr.service_settings import SETTINGS_CONFIG_MAP, SETTINGS_ENVIRONMENT, refuse_credentials
from launch.compilation import check_display_name, check_image, check_namespace
from launch.kfp_api import Connection, check_address
from launch.schedule import check_cron

# The house rules for pods: restricted security, limits, probes, images that stay, no secrets.

_POD_PATHS = {
    "Pod": "spec",
    "Deployment": "spec.template.spec",
    "StatefulSet": "spec.template.spec",
    "DaemonSet": "spec.template.spec",
    "Job": "spec.template.spec",
    "CronJob": "spec.jobTemplate.spec.template.spec",
}
_SERVERS = ("Deployment", "StatefulSet", "DaemonSet")
# a tag of one number moves with each release below it
_IMAGE_VERSION = re.compile(r":v?\d+\.\d+[\w.-]*$|@sha256:[0-9a-f]{64}$")
SECRET_NAME = re.compile(r"password|secret|token|(?<!public[-_])key|credential", re.IGNORECASE)
_SECRET_WORD = r"[\w-]*(?:password|passwd|secret|token|access[-_]key|api[-_]key|credential)[\w-]*"
# `name=value`, `name: value`, `--name value`; no path and no variable that Kubernetes fills in
_SECRET_VALUE = re.compile(
    rf"(?<![\w-])(?:{_SECRET_WORD} *[=:] *|--{_SECRET_WORD} +)(?![/$-])[^\s=:]", re.IGNORECASE
)
_URL_SECRET = re.compile(r"://[^\s/@:]*:(?!\$\()[^\s/@]+@")


def pod_problems(document: dict[str, Any]) -> Iterator[str]:
    """List what is wrong with the pod that an object makes, if its kind makes any."""
    kind = document["kind"]
    if kind not in _POD_PATHS:
        return
    pod: Any = document
    for part in _POD_PATHS[kind].split("."):
        # the schema of some kinds allows them to have no pod
        pod = pod.get(part) if isinstance(pod, dict) else None
    if pod is None:
        yield f"no {_POD_PATHS[kind]}"
    else:
        yield from _pod_problems(pod, server=kind in _SERVERS)


def _pod_problems(pod: dict[str, Any], *, server: bool) -> Iterator[str]:
    """Check restricted pod security, rights, limits, probes of servers and plain-text secrets."""
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
    for volume in pod.get("volumes") or []:
        if "hostPath" in volume:
            yield f"volume {volume['name']}: hostPath"
        if "emptyDir" in volume and not (volume["emptyDir"] or {}).get("sizeLimit"):
            yield f"volume {volume['name']}: no sizeLimit"
    for container in [*(pod.get("initContainers") or []), *pod["containers"]]:
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
    for variable in container.get("env") or []:
        yield from variable_problems(variable)
    # joined, so that an option and its value are seen together
    if holds_secret(" ".join([*container.get("command", []), *container.get("args", [])])):
        yield "command and args: looks like a secret in plain text"
    yield from image_problems("image", container.get("image", ""))


def variable_problems(variable: dict[str, Any]) -> Iterator[str]:
    """Find a secret in a variable of the environment."""
    value = variable.get("value", "")
    named = SECRET_NAME.search(variable["name"]) and value[:1] not in ("", "/", "$")
    if named or holds_secret(value):
        yield f"env {variable['name']}: looks like a secret in plain text"


def holds_secret(text: str) -> bool:
    """Tell whether a text looks as if it gave a secret a value."""
    return bool(_SECRET_VALUE.search(text) or _URL_SECRET.search(text))


def image_problems(where: str, image: str) -> Iterator[str]:
    """Find an image reference that is malformed or names no fixed version."""
    if not _IMAGE_VERSION.search(image):
        yield f"{where}: {image!r} names no fixed version: use X.Y.Z or a digest"
        return
    try:
        check_image(image, where=where)
    except ConfigError as error:
        yield str(error)


# What an operator writes into settings.env and schedule.env, checked in the rendered objects.

_SCHEDULE = "iceaggr-schedule"
_CONFIGS = Path(__file__).parent.parent / "configs"
_PLACES = "allowed-uris"
_KFP_API = "kfp-api"


def setting_problems(documents: list[dict[str, Any]]) -> Iterator[str]:
    """Compare the settings with what reads them: the steps, and the schedule's command line."""
    # an object without a name fails the check of its schema
    named = {(d.get("kind"), (d.get("metadata") or {}).get("name")): d for d in documents}
    settings = named.get(("ConfigMap", SETTINGS_CONFIG_MAP))
    if settings is not None:
        yield from _step_problems(settings.get("data") or {})
    job, schedule = named.get(("CronJob", _SCHEDULE)), named.get(("ConfigMap", _SCHEDULE))
    if job is not None and schedule is not None:
        yield from _schedule_problems(job, schedule.get("data") or {})


def _step_problems(settings: dict[str, str]) -> Iterator[str]:
    yield from _unread(SETTINGS_CONFIG_MAP, settings, SETTINGS_ENVIRONMENT)
    if _PLACES not in settings:
        # without it steps may go everywhere: that must be stated, not forgotten
        yield f"ConfigMap {SETTINGS_CONFIG_MAP}: {_PLACES} is missing; empty = every place"
    try:
        _check_host(settings.get(_KFP_API, ""), "settings.env")
    except ConfigError as error:
        yield f"ConfigMap {SETTINGS_CONFIG_MAP}: {_KFP_API}: {error}"


def _schedule_problems(job: dict[str, Any], settings: dict[str, str]) -> Iterator[str]:
    try:
        (container,) = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
        arguments = " ".join(container["args"])
    except (KeyError, TypeError, ValueError):
        yield f"CronJob {_SCHEDULE}: not one container with args"
        return
    read = set(re.findall(r"\$\((\w+)\)", arguments))
    yield from _unread(_SCHEDULE, settings, read)
    for name in sorted(read - set(settings)):
        yield f"ConfigMap {_SCHEDULE}: {name} is missing"
    for name in sorted(set(settings) & set(_VALUE_CHECKS)):
        try:
            _VALUE_CHECKS[name](settings[name])
        except ConfigError as error:
            yield f"ConfigMap {_SCHEDULE}: {name}: {error}"


def _unread(config_map: str, settings: dict[str, str], read: Iterable[str]) -> Iterator[str]:
    for name in sorted(set(settings) - set(read)):
        close = difflib.get_close_matches(name, read, 1)
        meant = f"; did you mean {close[0]}?" if close else ""
        yield f"ConfigMap {config_map}: nothing reads {name}{meant}"


def _check_config_name(name: str) -> None:
    known = sorted(path.name for path in _CONFIGS.glob("*.yaml"))
    if name not in known:
        raise ConfigError(
            "no such configuration",
            where="configs/",
            found=repr(name),
            expected=f"one of {', '.join(known)}",
        )
    load_config(_CONFIGS / name)


def _check_host(host: str, file: str = "schedule.env") -> None:
    if host:
        check_address(Connection(host))
    refuse_credentials(host, where=file, remedy="The schedule job has a token of its own")


_VALUE_CHECKS: dict[str, Callable[[str], None]] = {
    "CONFIG": _check_config_name,
    "EXPERIMENT": lambda name: check_display_name(name, where="schedule.env"),
    "KFP_HOST": _check_host,
    "RUN_NAMESPACE": lambda name: check_namespace(name, where="schedule.env"),
    "SCHEDULE_CRON": check_cron,
    "SCHEDULE_NAME": lambda name: check_display_name(name, where="schedule.env"),
}


# Every object: the schema of its kind, then the house rules of that kind.

KUBERNETES_VERSION = "1.32"
_SCHEMAS = Path(__file__).parent / "schemas"
_CLUSTER_WIDE = ("ClusterRole", "ClusterRoleBinding", "ClusterTrainingRuntime")
# deleting a rendered file would delete these and the data in them
_HOLDS_DATA = (
    "Namespace",
    "PersistentVolumeClaim",
    "PersistentVolume",
    "StorageClass",
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
        yield "deleting this file would delete the data in it: apply it separately"
    if kind == "StatefulSet":
        yield from _claim_problems(document["spec"])
    if kind not in (*_CLUSTER_WIDE, *_HOLDS_DATA) and not metadata.get("namespace"):
        yield "no namespace"
    if kind == "ConfigMap":
        for key, value in (document.get("data") or {}).items():
            if SECRET_NAME.search(key) or holds_secret(value):
                yield f"data.{key}: looks like a secret in a ConfigMap"
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
            yield f"{field}.{when} is not Retain: the data would be deleted, too"


def _rule_problems(rule: dict[str, Any]) -> Iterator[str]:
    if any("*" in values for values in rule.values()):
        yield f"unlimited rights: {rule}"
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
        return [], [f"{path}: not YAML: {words}"]
    objects = [d for d in documents if isinstance(d, dict) and {"apiVersion", "kind"} <= set(d)]
    found = (
        [] if len(objects) == len(documents) else [f"{path}: holds something other than objects"]
    )
    return objects, found if documents else [f"{path}: holds no object"]


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
