"""Training in processes of their own: what they are asked, and what they answer, in storage.

The step writes a request, something starts the processes with its URI, rank 0 writes the result.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from iceaggr.errors import TrainingError
from iceaggr.interfaces import ObjectStore, Tracker
from iceaggr.machines.supervision import LIMITS, Limits, run_here
from iceaggr.paths import RequestPaths, TrainingPaths, step_of
from iceaggr.patience import ask_patiently, may_pass
from iceaggr.steps.context import RunContext
from iceaggr.steps.documents import ModelPointer, parse_document, write_document
from iceaggr.steps.training_choices import TrainingChoices
from iceaggr.storage import open_folder

if TYPE_CHECKING:
    from iceaggr.training import TrainingInputs

# What a training starts from: decided once per run, so that a retry starts from the same.
#
# The first attempt asks the registry, copies the champion beside the run's checkpoints and writes
# training/start.json last. Every process of the training, on every machine, and every retry reads
# that: a champion that changes in between changes nothing, and a checkpoint wins over any start.


class TrainingStart(BaseModel):
    """The decision of a run.

    model: name of the model whose weights are taken, empty = from scratch
    folder_uri: this run's copy of it
    words: the decision for people, with its reason where it is not the obvious one
    """

    model_config = ConfigDict(frozen=True, extra="forbid", title="start of a training")

    model: str = ""
    folder_uri: str = ""
    words: str = "scratch"


def choose_start(context: RunContext) -> TrainingStart:
    """Find the decision of this run, or make it.

    Raises: ConfigError if the champion is wanted without a registry; TrackingError, StorageError;
    IceaggrError if the decision of an earlier attempt is damaged.
    """
    if context.config.training.start_from == "scratch":
        return TrainingStart()
    store = context.open_store()
    uri = context.paths.training.start_uri
    if store.stat(uri) is None:
        decided = _ask_registry(context, store)
        # of two attempts that decide at the same time the first one counts
        store.write_bytes_if_absent(uri, decided.model_dump_json(indent=1).encode())
    return parse_document(TrainingStart, store.read_bytes(uri), uri)


def begin_from(start: TrainingStart, inputs: TrainingInputs, tracker: Tracker) -> TrainingInputs:
    """Give a run the weights that its start decided on, and say so in the tracker.

    Raises: ModelError if the copy is damaged; TrainingError if the model does not fit the settings.
    """
    # torch, which the processes that only launch others do without
    from iceaggr.models.bundle import load_model
    from iceaggr.training import normalization_shift, start_from_model

    tracker.set_tags({"training/started_from": start.words})
    if not start.model:
        return inputs
    started = start_from_model(inputs, load_model(inputs.store, start.folder_uri), start.model)
    shift = normalization_shift(kept=started.normalization, fitted=inputs.normalization)
    tracker.log_metrics(
        {f"train_start/normalization_{name}": value for name, value in shift.items()}
    )
    return started


def _ask_registry(context: RunContext, store: ObjectStore) -> TrainingStart:
    name = context.config.promotion.model_name
    context.require_registry("training from the champion")
    from iceaggr.models.bundle import DOCUMENT, GEOMETRY, WEIGHTS
    from iceaggr.tracking.registry import ModelRegistry

    registry = ModelRegistry()
    champion = registry.champion(name)
    if champion is None:
        return TrainingStart(words=f"scratch, as {name} has no champion yet")
    folder_uri = f"{context.paths.training.started_from_uri}/{champion.version}"
    with TemporaryDirectory() as folder:
        fetched = registry.fetch(champion.uri, Path(folder))
        local = open_folder(Path(folder))
        for file in (WEIGHTS, GEOMETRY, DOCUMENT):
            store.write_bytes(f"{folder_uri}/{file}", local.read_bytes(f"{fetched}/{file}"))
    return TrainingStart(
        model=champion.uri, folder_uri=folder_uri, words=f"champion {champion.uri}"
    )


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
