"""Step 5 in processes of its own, on this machine or on several: asked and answered in storage.

The step writes a request, something starts the processes with its URI, rank 0 writes the result.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from iceaggr.config import ExperimentConfig
from iceaggr.errors import TrainingError
from iceaggr.interfaces import ObjectStore
from iceaggr.machines.supervision import LIMITS, Limits, run_here, torchrun_command
from iceaggr.paths import RequestPaths, TrainingPaths, step_of
from iceaggr.patience import ask_patiently, may_pass
from iceaggr.service_settings import environment_references, plugin_references
from iceaggr.steps.context import RunContext
from iceaggr.steps.documents import ModelPointer, parse_document, write_document
from iceaggr.steps.training_choices import TrainingChoices, parse_count

if TYPE_CHECKING:
    from iceaggr.machines.train_job import Machines


@dataclass(frozen=True)
class TrainingFacts:
    """What KFP shows of a training: labels on the model artifact, figures as metrics."""

    labels: dict[str, str]
    figures: dict[str, float]


class TrainRequest(BaseModel):
    """What to train; manifest and normalisation lie beside it."""

    model_config = ConfigDict(frozen=True, extra="forbid", title="request for a training")

    run_id: str
    experiment_name: str
    work_uri: str
    tracked: bool
    config: dict[str, Any]
    choices: TrainingChoices
    manifest_uri: str
    normalization_uri: str
    result_uri: str


class TrainAnswer(BaseModel):
    """How it ended, from rank 0."""

    model_config = ConfigDict(frozen=True, extra="forbid", title="answer of a training")

    pointer: ModelPointer
    labels: dict[str, str]
    figures: dict[str, float]


def read_request(store: ObjectStore, uri: str) -> TrainRequest:
    """Read a request. Raises: StorageError if it does not exist; IceaggrError if it is damaged."""
    return parse_document(TrainRequest, store.read_bytes(uri), uri)


def n_steps_saved(store: ObjectStore, training: TrainingPaths) -> int:
    """Read the step of a run's newest checkpoint, -1 if there is none. Raises: StorageError."""
    # without torch, which iceaggr.training.checkpoint needs: the supervisor stays small
    uri = training.latest_checkpoint_uri
    if store.stat(uri) is None:
        return -1
    try:
        return step_of(str(json.loads(store.read_bytes(uri))["folders"][0]))
    except (ValueError, LookupError, TypeError):
        return -1  # the training itself says what is wrong with it


def decide_start(context: RunContext, choices: TrainingChoices) -> None:
    """Decide what a training starts from, where one process does it: all others find the decision.

    Raises: what `choose_start` raises.
    """
    # without torch, until there is something to decide: the supervisor stays small
    from iceaggr.steps.training_inputs import choose_start

    choose_start(replace(context, config=choices.applied_to(context.config)))


def train_in_processes(
    context: RunContext,
    manifest_path: Path,
    normalization_path: Path,
    *,
    model_path: Path,
    choices: TrainingChoices,
    launch: Callable[[str], None],
    paths: RequestPaths,
) -> TrainingFacts:
    """Ask for a training, launch its processes and pass on their answer.

    launch: starts the processes with the URI of the request and returns when they ended well
    paths: where the request is written; close_run asks Kubernetes for a TrainJob where there is a
    `job_request`
    Raises: StorageError; TrainingError; what launch raises.
    """
    store = context.open_store()
    request = TrainRequest(
        run_id=context.run_id,
        experiment_name=context.experiment_name,
        work_uri=context.work_uri,
        tracked=context.tracked,
        config=context.config.model_dump(mode="json"),
        choices=choices,
        manifest_uri=paths.manifest_uri,
        normalization_uri=paths.normalization_uri,
        result_uri=paths.result_uri,
    )
    store.write_bytes(paths.manifest_uri, manifest_path.read_bytes())
    store.write_bytes(paths.normalization_uri, normalization_path.read_bytes())
    store.write_bytes(paths.request_uri, request.model_dump_json(indent=1).encode())
    launch(paths.request_uri)
    if store.stat(request.result_uri) is None:
        raise TrainingError(
            "the training processes ended well but left no result",
            where=request.result_uri,
            found="no such object",
            expected="the answer of rank 0",
            remedy="Look at the log of the training processes, then run the step again: it resumes",
        )
    answer = parse_document(TrainAnswer, store.read_bytes(request.result_uri), request.result_uri)
    write_document(model_path, answer.pointer.model_dump_json(indent=1))
    return TrainingFacts(answer.labels, answer.figures)


# Step 5 on this machine: in one process per GPU, watched by this one, which stays small.


def run_train_here(
    context: RunContext,
    manifest_path: Path,
    normalization_path: Path,
    *,
    model_path: Path,
    choices: TrainingChoices,
    limits: Limits = LIMITS,
) -> TrainingFacts:
    """Train on this machine, with one process per GPU; a retry resumes.

    A process that is killed, runs out of memory or meets an error of its GPU is restarted from its
    checkpoint, within limits.
    Raises: ConfigError for a bad choice; TrainingError, also if the machine lacks the GPUs.
    """
    n_processes = choices.n_processes
    config = choices.applied_to(context.config)
    if n_processes > 1:
        from iceaggr.training.device import check_gpus

        # a single process finds out by itself, and saves this one from importing torch
        check_gpus(config.training, n_processes)
        ask_patiently(
            lambda: decide_start(context, choices),
            is_away=may_pass,
            patience_s=limits.store_away_s,
        )
    store = context.open_store()
    return train_in_processes(
        context,
        manifest_path,
        normalization_path,
        model_path=model_path,
        choices=choices,
        launch=lambda uri: run_here(
            uri, n_processes, lambda: n_steps_saved(store, context.paths.training), limits
        ),
        paths=context.paths.training.local_request,
    )


# Step 5 on several machines: launch a TrainJob, follow it, take over its result.

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
    # Kubernetes' client takes a second and memory that a training on one machine does not need
    from iceaggr.machines.job_api import JobApi
    from iceaggr.machines.train_job import TrainJobOrder, run_train_job

    api = JobApi.of_this_pod()
    # set by KFP; the job then goes when the pod does, even if nobody is left to delete it
    name, uid = os.environ.get("KFP_POD_NAME", ""), os.environ.get("KFP_POD_UID", "")
    pod = (name, uid) if name and uid else None
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
    from iceaggr.machines.train_job import Machines

    return Machines(
        n_nodes=parse_count(n_nodes, where="train_nodes", least=2),
        n_gpus=parse_count(gpu_count, where="train_gpu_count"),
        gpu_type=gpu_type,
        cpu=cpu,
        memory=memory,
        node_selector=node_selector,
        tolerations=tolerations,
    )
