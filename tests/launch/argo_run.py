"""A run as Argo holds it, and as two of KFP's APIs tell it: one with errors, one without.

Source: kubeflow/pipelines 2.17: NodeStatuses in backend/src/common/util/workflow.go,
toApiPipelineTaskDetail in backend/src/apiserver/server/api_converter.go (neither error nor pod
name is filled in), argocompiler/container.go for the names of nodes and templates; Argo's
workflow/util/pod_name.go for those of pods.
"""

from __future__ import annotations

import base64
import datetime
import gzip
import json
import uuid
from dataclasses import dataclass, field

import kfp_server_api as api

NEVER = datetime.datetime(1, 1, 1, tzinfo=datetime.UTC)
BEGIN = datetime.datetime(2026, 11, 28, 18, 28, 18, tzinfo=datetime.UTC)
INNER = "root.exit-handler-1"
_IMPL = "metadata-0-1-retry-system-container-impl"
_STATES = {"Error": "FAILED", "Omitted": "SKIPPED"}


def fnv32a(text: str) -> int:
    value = 0x811C9DC5
    for byte in text.encode():
        value = ((value ^ byte) * 0x01000193) % 2**32
    return value


@dataclass
class ArgoRun:
    """Nodes by path; `step` adds what Argo makes of a step of ours."""

    name: str = "iceaggr-direction-x7k2p"
    namespace: str = "kubeflow"
    message: str = ""
    stopped: bool = False
    packed: bool = False
    clock_s: int = 0
    nodes: dict[str, dict] = field(default_factory=dict)
    logs: dict[str, str] = field(default_factory=dict)

    def node(self, path, kind, phase, template="", message="", seconds=10):
        started = BEGIN + datetime.timedelta(seconds=self.clock_s)
        known = self.nodes.get(path, {})
        over = phase not in ("Running", "Pending")
        self.nodes[path] = {
            "id": self.node_id(path),
            "name": f"{self.name}.{path}",
            "displayName": path.rpartition(".")[2],
            "type": kind,
            "phase": phase,
            "message": message,
            "templateName": template,
            "boundaryID": self.node_id(path.rpartition(".")[0]),
            "startedAt": known.get("startedAt") or started.isoformat(),
            "finishedAt": self._end(seconds) if over else None,
            "children": [],
        }
        return self

    def _end(self, seconds):
        self.clock_s += seconds
        return (BEGIN + datetime.timedelta(seconds=self.clock_s)).isoformat()

    def node_id(self, path):
        return f"{self.name}-{fnv32a(f'{self.name}.{path}')}" if path else self.name

    def pod_name(self, path):
        hash_ = fnv32a(f"{self.name}.{path}")
        return f"{self.name}-{self.nodes[path]['templateName']}-{hash_}"

    def step(self, step, *phases, inside=INNER, message="", log="", seconds=10):
        """Add a step with its driver and one pod for each phase, all but the last attempts."""
        path = f"{inside}.{step}"
        self.node(f"{path}-driver", "Pod", "Succeeded", "system-container-driver")
        for attempt, phase in enumerate(phases):
            pod = f"{path}.executor({attempt})"
            last = attempt == len(phases) - 1
            why = message if last else "Error (exit code 1)"
            self.node(pod, "Pod", phase, _IMPL, why, seconds)
            # groups are Running while a pod waits
            group = "Running" if phases[-1] == "Pending" else phases[-1]
            self.node(f"{path}.executor", "Retry", group, _IMPL, why, 0)
            self.node(path, "DAG", group, "retry-system-container-executor", "", 0)
            self.logs[self.pod_name(pod)] = log if last else ""
        return self

    def end(self, phase):
        self.node(INNER, "DAG", phase, "comp-exit-handler-1", "", 0)
        return self.node("root", "DAG", phase, "root", "", 0)

    def manifest(self) -> str:
        nodes = {node["id"]: node for node in self.nodes.values()}
        status: dict = {"message": self.message, "nodes": nodes}
        if self.packed:
            packed = base64.b64encode(gzip.compress(json.dumps(nodes).encode())).decode()
            status = {"message": self.message, "compressedNodes": packed}
        return json.dumps(
            {
                "metadata": {"name": self.name, "namespace": self.namespace},
                "spec": {"activeDeadlineSeconds": 0 if self.stopped else 1209600},
                "status": status,
            }
        )

    def task_details(self, run_id) -> list[api.V2beta1PipelineTaskDetail]:
        return [self._detail(run_id, node) for node in self.nodes.values()]

    def _detail(self, run_id, node) -> api.V2beta1PipelineTaskDetail:
        state = _STATES.get(node["phase"], node["phase"].upper())
        start = datetime.datetime.fromisoformat(node["startedAt"])
        end = node["finishedAt"]
        return api.V2beta1PipelineTaskDetail(
            run_id=run_id,
            task_id=str(uuid.uuid4()),
            display_name=node["displayName"],
            create_time=BEGIN,
            start_time=start,
            end_time=datetime.datetime.fromisoformat(end) if end else NEVER,
            state=state,
            state_history=[api.V2beta1RuntimeStatus(update_time=start, state=state)],
        )
