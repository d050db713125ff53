"""Step 5 on several machines: launch a TrainJob, follow it, take over its result."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from iceaggr.config import ExperimentConfig
from iceaggr.machines.credentials import environment_references, plugin_references
from iceaggr.machines.job_api import JobApi
from iceaggr.machines.job_run import run_train_job
from iceaggr.machines.supervision import torchrun_command
from iceaggr.machines.train_job import Machines, TrainJobOrder
from iceaggr.steps.context import RunContext
from iceaggr.steps.train_request import TrainingFacts, decide_start, train_in_processes
from iceaggr.steps.training_choices import TrainingChoices, parse_count

_LONGEST_S = 14 * 24 * 3600
_WAITING_S = 24 * 3600


def run_train_on_machines(
    context: RunContext,
    manifest_path: Path,
    normalization_path: Path,
    *,
    model_path: Path,
    choices: TrainingChoices,
    machines: Machines,
    image: str,
) -> TrainingFacts:
    """Train on several machines by a TrainJob of this run; a retry adopts or resumes it.

    image: of the training pods, the same as of the steps.
    choices: the number of GPUs is that of the machines.
    Raises: ConfigError, TrainingError, KubernetesError.
    """
    api = JobApi.of_this_pod()
    pod = _this_pod()
    choices = replace(choices, gpu_count=str(machines.n_gpus))

    def launch(request_uri: str) -> None:
        order = TrainJobOrder(
            run_id=context.run_id,
            image=image,
            command=torchrun_command("python3", request_uri, None),
            machines=machines,
            deadline_s=deadline_s(choices.applied_to(context.config)),
            environment={**environment_references(), **plugin_references(os.environ)},
            owner=pod,
            service_account=api.account_of(pod[0]) if pod else "",
        )
        run_train_job(api, order, lambda line: print(line, flush=True))

    decide_start(context, choices)
    return train_in_processes(
        context,
        manifest_path,
        normalization_path,
        model_path=model_path,
        choices=choices,
        launch=launch,
        paths=context.paths.training.job_request,
    )


def deadline_s(config: ExperimentConfig) -> int:
    """Give the time after which a job is ended: generous, for waiting and restarts, yet finite.

    Trainer counts from the creation of the job: hours in which its pods wait for machines, for a
    quota or for their image, and all restarts are in it, so a day is added for these.
    Source: `activeDeadlineSeconds` of Trainer's TrainJobSpec, v2.3.
    """
    minutes = config.training.max_minutes
    return min(int(minutes * 60 * 2) + _WAITING_S, _LONGEST_S) if minutes else _LONGEST_S


def parse_machines(
    n_nodes: str,
    gpu_count: str,
    gpu_type: str,
    cpu: str,
    memory: str,
    node_selector: dict[str, str],
    tolerations: list[dict[str, Any]],
) -> Machines:
    """Read the step's parameters, all of which KFP hands on as text or JSON.

    Raises: ConfigError unless there are two nodes or more and gpu_count is a whole number.
    """
    return Machines(
        n_nodes=parse_count(n_nodes, where="train_nodes", least=2),
        n_gpus=parse_count(gpu_count, where="train_gpu_count"),
        gpu_type=gpu_type,
        cpu=cpu,
        memory=memory,
        node_selector=node_selector,
        tolerations=tolerations,
    )


def _this_pod() -> tuple[str, str] | None:
    # set by KFP; the job then goes when the pod does, even if nobody is left to delete it
    name, uid = os.environ.get("KFP_POD_NAME", ""), os.environ.get("KFP_POD_UID", "")
    return (name, uid) if name and uid else None
