"""What Argo knows of a run and KFP's API leaves out: why a pod waits, why it failed, its log.

KFP 2.17 tells the state of each step, but neither its error nor its pod (kubeflow/pipelines, issue
14007). Its older API still hands out the whole workflow, and the API server reads the logs of pods,
so a port-forward to it is enough. A server without these is no error: the caller says less then.
"""

from __future__ import annotations

import base64
import gzip
import json
import re
from collections import deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlencode

import kfp
import urllib3
from kfp_server_api.exceptions import ApiException

from iceaggr.machines.supervision import RESTARTED

FAILED_PHASES = ("Failed", "Error")
_ANSWER_S = 20
_TAIL_LINES = 5000
_STARTING = ("ContainerCreating", "PodInitializing")
# Source: Python's traceback module: the last line names the class, with its module, and the text
_RAISED = re.compile(r"(?P<kind>(?:\w+\.)*\w*(?:Error|Exception|Exit|Interrupt)): (?P<text>\S.*)")
_OURS = "iceaggr."
# Source: Kubernetes' reasons for the end of a pod or container that did not end by itself, and
# Argo's words for a pod that is gone
_FROM_OUTSIDE = re.compile(
    r"OOMKilled|exit code 137|evict|low on resource|preempt|node (shut|lost)|shutdown|deadline"
    r"|pod deleted",
    re.IGNORECASE,
)
_ATTEMPT = re.compile(r"\(\d+\)$")


@dataclass(frozen=True)
class Node:
    """One node of an Argo workflow: a pod, or a group of nodes.

    label: name within its group.  boundary_id: the group; '' for the outermost
    """

    node_id: str
    label: str
    kind: str
    phase: str
    message: str
    template: str
    boundary_id: str
    finished: str

    @property
    def ended_from_outside(self) -> bool:
        """Tell whether the pod was killed or lost, so that its log cannot say why it ended."""
        return self.phase == "Error" or bool(_FROM_OUTSIDE.search(self.message))


@dataclass(frozen=True)
class Workflow:
    """The workflow of a run, as Argo left it or has it now."""

    name: str
    namespace: str
    message: str
    stopped: bool
    nodes: dict[str, Node] = field(repr=False)

    def step_of(self, node: Node, steps: Collection[str]) -> str:
        """Name the step that a node works for, '' for none; a driver works for its step."""
        for current in self._upwards(node):
            label = _base(current.label).removesuffix("-driver")
            if label in steps:
                return label
        return ""

    def pods_of(self, step: str) -> list[Node]:
        """List the pods that did a step's work, in the order of their ends."""
        pods = [node for node in self._pods() if self.step_of(node, [step])]
        return [pod for pod in pods if not _base(pod.label).endswith("-driver")]

    def first_failure(self) -> Node | None:
        """Find the pod that ended the run: the last attempt of what failed first.

        Attempts of what succeeded later do not count.
        """
        good = {
            (_base(node.label), node.boundary_id)
            for node in self.nodes.values()
            if node.phase == "Succeeded"
        }
        final = [
            pod
            for pod in self._pods()
            if pod.phase in FAILED_PHASES
            and not any((_base(n.label), n.boundary_id) in good for n in self._upwards(pod))
        ]
        attempts = [pod for pod in final if pod.boundary_id == final[0].boundary_id]
        return attempts[-1] if attempts else None

    def waiting(self, steps: Collection[str]) -> dict[str, str]:
        """Give the reason of each step whose pod does not start, such as 'Unschedulable: ...'."""
        return {
            self.step_of(node, steps) or node.label: node.message
            for node in self._pods()
            if node.phase == "Pending" and node.message and node.message not in _STARTING
        }

    def _pods(self) -> list[Node]:
        pods = [node for node in self.nodes.values() if node.kind == "Pod"]
        return sorted(pods, key=lambda node: node.finished or "9999")

    def _upwards(self, node: Node) -> Iterator[Node]:
        current: Node | None = node
        while current is not None:
            yield current
            current = self.nodes.get(current.boundary_id)

    def pod_name(self, node: Node) -> str:
        """Name the pod of a node.

        Source: GeneratePodName of Argo's workflow/util/pod_name.go: workflow, template, and the
        hash that the node's id ends with.
        """
        return f"{self.name}-{node.template}-{node.node_id.rpartition('-')[2]}"


def _base(label: str) -> str:
    # attempts of one node are called NAME(0), NAME(1), ...
    return _ATTEMPT.sub("", label)


def read_workflow(client: kfp.Client, run_id: str) -> Workflow | None:
    """Read the workflow of a run; None if the server does not hand it out."""
    answer = _get(client, f"/apis/v1beta1/runs/{quote(run_id)}")
    if answer is None:
        return None
    try:
        runtime = json.loads(answer.data).get("pipeline_runtime") or {}
        document = json.loads(runtime.get("workflow_manifest") or "null")
        return _workflow(document) if document else None
    except (ValueError, AttributeError, TypeError, urllib3.exceptions.HTTPError):
        return None


def _workflow(document: dict[str, Any]) -> Workflow:
    spec, status = document.get("spec") or {}, document.get("status") or {}
    nodes = status.get("nodes") or {}
    if packed := status.get("compressedNodes"):
        # Argo packs the nodes of a large workflow: gzip, then base64
        nodes = json.loads(gzip.decompress(base64.b64decode(packed)))
    return Workflow(
        name=document["metadata"]["name"],
        namespace=document["metadata"].get("namespace", ""),
        message=status.get("message", ""),
        # how KFP terminates a run; its own deadline is 14 days
        stopped=spec.get("activeDeadlineSeconds") == 0 or bool(spec.get("shutdown")),
        nodes={node_id: _node(node_id, node) for node_id, node in nodes.items()},
    )


def _node(node_id: str, node: dict[str, Any]) -> Node:
    return Node(
        node_id=node_id,
        label=node.get("displayName", ""),
        kind=node.get("type", ""),
        phase=node.get("phase", ""),
        message=" ".join(str(node.get("message") or "").split()),
        template=node.get("templateName") or (node.get("templateRef") or {}).get("template", ""),
        boundary_id=node.get("boundaryID", ""),
        finished=node.get("finishedAt") or "",
    )


def read_log(client: kfp.Client, run_id: str, pod: str, namespace: str) -> list[str]:
    """Read the end of a pod's log; empty if no server has it.

    The API server has it under one address, the UI in front of it under another.
    """
    asked = urlencode({"podname": pod, "runid": run_id, "podnamespace": namespace})
    for path in (
        f"/apis/v1alpha1/runs/{quote(run_id)}/nodes/{quote(pod)}/log",
        f"/k8s/pod/logs?{asked}",
    ):
        answer = _get(client, path)
        if answer is None or "html" in answer.headers.get("Content-Type", ""):
            continue
        try:
            lines = list(deque(_lines(answer), maxlen=_TAIL_LINES))
        except urllib3.exceptions.HTTPError:
            continue
        if lines:
            return lines
    return []


def _lines(answer: Any) -> Iterator[str]:
    rest = b""
    for block in answer.stream(65536):
        *whole, rest = (rest + block).split(b"\n")
        yield from (line.decode(errors="replace") for line in whole)
    if rest:
        yield rest.decode(errors="replace")


def own_error(log: list[str]) -> str:
    """Find the line of a log in which a step says why it failed, '' if there is none.

    What stands above the last restart of a training was overcome, and is no cause.
    """
    for line in reversed(log):
        if line.startswith(RESTARTED):
            break
        found = _RAISED.fullmatch(line.strip())
        if found:
            ours = found["kind"].startswith(_OURS)
            return found["text"] if ours else found[0]
    return ""


def _get(client: kfp.Client, path: str) -> Any:
    """Ask for what the generated client has no method for; None if it is not there."""
    try:
        answer = client._run_api.api_client.call_api(
            path,
            "GET",
            auth_settings=["Bearer"],
            response_type=None,
            _return_http_data_only=True,
            _preload_content=False,
            _request_timeout=_ANSWER_S,
        )
    except (ApiException, urllib3.exceptions.HTTPError):
        return None
    return answer
