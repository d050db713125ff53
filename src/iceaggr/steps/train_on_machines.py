"""Step 5 with more than one process: several GPUs of this pod, or several machines."""

from __future__ import annotations

import os
from pathlib import Path

from iceaggr.errors import ConfigError
from iceaggr.machines.credentials import environment_references
from iceaggr.machines.job_api import JobApi
from iceaggr.machines.job_run import run_train_job
from iceaggr.machines.torchrun import run_here, torchrun_command
from iceaggr.machines.train_job import Machines, TrainJobOrder
from iceaggr.steps.context import RunContext
from iceaggr.steps.train_model import TrainingFacts, apply_run_limits, run_train_model
from iceaggr.steps.train_request import train_in_processes

_LONGEST_S = 14 * 24 * 3600
_MARGIN_S = 3600


def run_train_here(
    context: RunContext,
    documents: tuple[Path, Path],
    *,
    model_path: Path,
    max_train_minutes: float,
    gpu_count: str,
) -> TrainingFacts:
    """Train on this machine, with one process per GPU; a retry resumes.

    documents: manifest and normalisation.  Raises: ConfigError for a bad gpu_count; TrainingError.
    """
    limits = {"max_train_minutes": max_train_minutes, "gpu_count": gpu_count}
    apply_run_limits(context.config, **limits)  # type: ignore[arg-type]
    n_processes = int(gpu_count)
    if n_processes <= 1:
        return run_train_model(
            context,
            *documents,
            model_path=model_path,
            max_train_minutes=max_train_minutes,
            gpu_count=gpu_count,
        )
    return train_in_processes(
        context,
        documents,
        model_path=model_path,
        max_train_minutes=max_train_minutes,
        gpu_count=gpu_count,
        launch=lambda uri: run_here(uri, n_processes),
    )


def run_train_on_machines(
    context: RunContext,
    documents: tuple[Path, Path],
    *,
    model_path: Path,
    max_train_minutes: float,
    machines: Machines,
    image: str,
) -> TrainingFacts:
    """Train on several machines by a TrainJob of this run; a retry adopts or resumes it.

    documents: manifest and normalisation.  image: of the training pods, the same as of the steps.
    Raises: ConfigError, TrainingError, KubernetesError.
    """
    api = JobApi.of_this_pod()

    def launch(request_uri: str) -> None:
        order = TrainJobOrder(
            run_id=context.run_id,
            image=image,
            command=torchrun_command("python3", request_uri, None),
            machines=machines,
            deadline_s=deadline_s(context, max_train_minutes),
            environment=dict(environment_references()),
            owner=_this_pod(),
        )
        run_train_job(api, order, lambda line: print(line, flush=True))

    return train_in_processes(
        context,
        documents,
        model_path=model_path,
        max_train_minutes=max_train_minutes,
        gpu_count=str(machines.n_gpus),
        launch=launch,
    )


def deadline_s(context: RunContext, max_train_minutes: float) -> int:
    """Give the time after which a job is ended: generous, for waiting and restarts, yet finite."""
    minutes = max_train_minutes or context.config.training.max_minutes
    return int(minutes * 60 * 2) + _MARGIN_S if minutes else _LONGEST_S


def parse_machines(
    n_nodes: str, gpu_count: str, gpu_type: str, size: tuple[str, str], placement: tuple[dict, list]
) -> Machines:
    """Read the step's parameters, all of which KFP hands on as text or JSON.

    size: cpu and memory.  placement: node selector and tolerations.
    Raises: ConfigError unless there are two nodes or more and gpu_count is a whole number.
    """
    for name, text, least in (("train_nodes", n_nodes, 2), ("train_gpu_count", gpu_count, 0)):
        if not text.isdigit() or int(text) < least:
            raise ConfigError(
                "bad number", where=name, found=repr(text), expected=f"a whole number from {least}"
            )
    cpu, memory = size
    return Machines(int(n_nodes), int(gpu_count), gpu_type, cpu, memory, *placement)


def _this_pod() -> tuple[str, str] | None:
    # set by KFP; the job then goes when the pod does, even if nobody is left to delete it
    name, uid = os.environ.get("KFP_POD_NAME", ""), os.environ.get("KFP_POD_UID", "")
    return (name, uid) if name and uid else None
