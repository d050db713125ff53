"""The TrainJob object: the training command on several machines, as Kubeflow Trainer wants it.

Built from the models of Trainer's own API package, which its SDK is made of, too. The SDK itself is
not used: `TrainerClient.train` takes environment variables as plain values only, and ours come from
secrets; patches of the runtime must not carry variables for the training container
(kubeflow/trainer pull request 2614). Nor can it name the pod that owns the job or the processes of
a machine. Apart from these three it sends the very same object, and it reads, follows and deletes
ours: tests/machines/test_trainer_sdk.py.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from kubeflow_trainer_api import models
from pydantic import ValidationError

from iceaggr.errors import ConfigError
from iceaggr.machines.credentials import SecretKey

RUNTIME = "iceaggr"
"""ClusterTrainingRuntime that manifests/trainer installs."""
RUN_LABEL = "iceaggr/run-id"
_API_VERSION = "trainer.kubeflow.org/v1alpha1"
_LONGEST_NAME = 44  # a pod's name adds "-node-0-0-xxxxx" and may have 63 characters


@dataclass(frozen=True)
class Machines:
    """What each of the machines is.

    n_nodes: machines.  n_gpus: on each.  cpu, memory: Kubernetes quantities, on each
    node_selector, tolerations: where the pods may run
    """

    n_nodes: int
    n_gpus: int
    gpu_type: str
    cpu: str
    memory: str
    node_selector: dict[str, str] = field(default_factory=dict)
    tolerations: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class TrainJobOrder:
    """One training on several machines.

    run_id: of the pipeline run; the same run always has the same job, so a retry finds it
    image: of the training pods.  command: of each
    deadline_s: after which the job is ended
    environment: variables by name; owner: pod that takes the job with it when it is deleted
    service_account: of the training pods, where keys come by workload identity; empty = default
    """

    run_id: str
    image: str
    command: list[str]
    machines: Machines
    deadline_s: int
    environment: dict[str, str | SecretKey] = field(default_factory=dict)
    owner: tuple[str, str] | None = None
    service_account: str = ""

    @property
    def name(self) -> str:
        """Name the job by its run."""
        return job_name(self.run_id)


def job_name(run_id: str) -> str:
    """Name the job of a run, in characters that Kubernetes allows."""
    clean = re.sub(r"[^a-z0-9]+", "-", run_id.lower()).strip("-")
    return f"iceaggr-{clean}"[:_LONGEST_NAME].rstrip("-")


def build_train_job(order: TrainJobOrder) -> dict[str, Any]:
    """Build the object to send. Raises: ConfigError if the machines cannot be described so."""
    try:
        job = models.TrainerV1alpha1TrainJob.from_dict(_document(order))
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(
            "machines cannot be described so",
            where=".".join(map(str, first["loc"])),
            found=repr(first.get("input")),
            expected=first["msg"],
            remedy="Correct the value in the run form",
        ) from None
    assert job is not None, "from_dict gives None for None only"
    built: dict[str, Any] = job.to_dict()
    return built


def _document(order: TrainJobOrder) -> dict[str, Any]:
    machines = order.machines
    resources: dict[str, str] = {"cpu": machines.cpu, "memory": machines.memory}
    if machines.n_gpus:
        resources[machines.gpu_type] = str(machines.n_gpus)
    metadata: dict[str, Any] = {"name": order.name, "labels": {RUN_LABEL: order.name[8:]}}
    if order.owner is not None:
        metadata["ownerReferences"] = [_owner(*order.owner)]
    return {
        "apiVersion": _API_VERSION,
        "kind": "TrainJob",
        "metadata": metadata,
        "spec": {
            "runtimeRef": {"name": RUNTIME, "kind": "ClusterTrainingRuntime"},
            "activeDeadlineSeconds": order.deadline_s,
            "trainer": {
                "image": order.image,
                "command": order.command,
                "numNodes": machines.n_nodes,
                "numProcPerNode": max(1, machines.n_gpus),
                "resourcesPerNode": {"requests": resources, "limits": resources},
                "env": [_variable(n, v) for n, v in sorted(order.environment.items())],
            },
            **_placement(machines, order.service_account),
        },
    }


def _placement(machines: Machines, service_account: str) -> dict[str, Any]:
    pod: dict[str, Any] = {}
    if service_account:
        pod["serviceAccountName"] = service_account
    if machines.node_selector:
        pod["nodeSelector"] = machines.node_selector
    if machines.tolerations:
        pod["tolerations"] = [_whole(toleration) for toleration in machines.tolerations]
    if not pod:
        return {}
    job = {"name": "node", "template": {"spec": {"template": {"spec": pod}}}}
    patch = {"template": {"spec": {"replicatedJobs": [job]}}}
    return {"runtimePatches": [{"manager": "iceaggr/pipeline", "trainingRuntimeSpec": patch}]}


def _whole(values: dict[str, Any]) -> dict[str, Any]:
    # numbers inside a list parameter of KFP arrive as floats: 300 seconds as 300.0
    return {
        key: int(value) if isinstance(value, float) and value.is_integer() else value
        for key, value in values.items()
    }


def _variable(name: str, value: str | SecretKey) -> dict[str, Any]:
    if isinstance(value, str):
        return {"name": name, "value": value}
    reference = {"name": value.name, "key": value.key, "optional": True}
    return {"name": name, "valueFrom": {value.kind: reference}}


def _owner(pod_name: str, pod_uid: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Pod", "name": pod_name, "uid": pod_uid}
