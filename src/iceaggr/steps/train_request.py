"""Training in processes of their own: what they are asked, and what they answer, in storage.

The step writes a request, something starts the processes with its URI, rank 0 writes the result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from iceaggr.errors import TrainingError
from iceaggr.interfaces import ObjectStore
from iceaggr.steps.context import RunContext
from iceaggr.steps.documents import ModelPointer, parse_document, write_document
from iceaggr.steps.train_model import TrainingFacts
from iceaggr.steps.training_choices import TrainingChoices
from iceaggr.steps.training_start import choose_start


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


def train_in_processes(
    context: RunContext,
    documents: tuple[Path, Path],
    *,
    model_path: Path,
    choices: TrainingChoices,
    launch: Callable[[str], None],
) -> TrainingFacts:
    """Ask for a training, launch its processes and pass on their answer.

    documents: manifest and normalisation
    launch: starts the processes with the URI of the request and returns when they ended well
    Raises: ConfigError for a bad choice; TrainingError; what launch raises.
    """
    # here, where one process decides: all others find the decision
    choose_start(replace(context, config=choices.applied_to(context.config)))
    store = context.open_store()
    folder = f"{context.run_uri}/training/request"
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
