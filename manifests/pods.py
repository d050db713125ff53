"""The house rules for pods: restricted security, limits, probes, images that stay, no secrets."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from iceaggr.errors import ConfigError
from launch.names import check_image

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
        yield "command and args: a secret in the clear?"
    yield from image_problems("image", container.get("image", ""))


def variable_problems(variable: dict[str, Any]) -> Iterator[str]:
    """Find a secret in a variable of the environment."""
    value = variable.get("value", "")
    named = SECRET_NAME.search(variable["name"]) and value[:1] not in ("", "/", "$")
    if named or holds_secret(value):
        yield f"env {variable['name']}: a secret in the clear?"


def holds_secret(text: str) -> bool:
    """Tell whether a text looks as if it gave a secret a value."""
    return bool(_SECRET_VALUE.search(text) or _URL_SECRET.search(text))


def image_problems(where: str, image: str) -> Iterator[str]:
    """Find an image reference that is none or that moves."""
    if not _IMAGE_VERSION.search(image):
        yield f"{where}: {image!r} names no version that stays: X.Y.Z or a digest"
        return
    try:
        check_image(image, where=where)
    except ConfigError as error:
        yield str(error)
