"""Training in processes of their own: what they are asked, and what they answer, in storage.

The step writes a request, something starts the processes with its URI, rank 0 writes the result.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from iceaggr.errors import TrainingError
from iceaggr.interfaces import ObjectStore
from iceaggr.steps.context import RunContext
from iceaggr.steps.documents import ModelPointer, parse_document, write_document
from iceaggr.steps.training_choices import TrainingChoices


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


def n_steps_saved(store: ObjectStore, run_uri: str) -> int:
    """Read the step of a run's newest checkpoint, -1 if there is none. Raises: StorageError."""
    # without torch, which iceaggr.training.checkpoint needs: the supervisor stays small
    uri = f"{run_uri}/training/checkpoints/latest.json"
    if store.stat(uri) is None:
        return -1
    try:
        newest = str(json.loads(store.read_bytes(uri))["folders"][0])
        return int(newest.split("-")[1])
    except (ValueError, LookupError, TypeError):
        return -1  # the training itself says what is wrong with it


def decide_start(context: RunContext, choices: TrainingChoices) -> None:
    """Decide what a training starts from, where one process does it: all others find the decision.

    Raises: what `choose_start` raises.
    """
    from iceaggr.steps.training_start import choose_start

    choose_start(replace(context, config=choices.applied_to(context.config)))


def train_in_processes(
    context: RunContext,
    documents: tuple[Path, Path],
    *,
    model_path: Path,
    choices: TrainingChoices,
    launch: Callable[[str], None],
    folder_name: str = "request",
) -> TrainingFacts:
    """Ask for a training, launch its processes and pass on their answer.

    documents: manifest and normalisation
    launch: starts the processes with the URI of the request and returns when they ended well
    folder_name: of the request, below the run's training/; close_run asks Kubernetes for a TrainJob
    where there is a `request`
    Raises: StorageError; TrainingError; what launch raises.
    """
    store = context.open_store()
    folder = f"{context.run_uri}/training/{folder_name}"
    request = TrainRequest(
        run_id=context.run_id,
        experiment_name=context.experiment_name,
        work_uri=context.work_uri,
        tracked=context.tracked,
        config=context.config.model_dump(mode="json"),
        choices=choices,
        manifest_uri=f"{folder}/manifest.json",
        normalization_uri=f"{folder}/normalization.json",
        result_uri=f"{folder}/result.json",
    )
    for uri, path in zip((request.manifest_uri, request.normalization_uri), documents, strict=True):
        store.write_bytes(uri, path.read_bytes())
    store.write_bytes(f"{folder}/request.json", request.model_dump_json(indent=1).encode())
    launch(f"{folder}/request.json")
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
