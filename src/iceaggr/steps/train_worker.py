"""One of the processes of a training, or the only one.

python -m iceaggr.steps.train_worker REQUEST_URI
torchrun ... -m iceaggr.steps.train_worker --together REQUEST_URI
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from iceaggr.errors import IceaggrError
from iceaggr.machines.supervision import TOGETHER, note_ending, restarts_so_far
from iceaggr.paths import MANIFEST, NORMALIZATION
from iceaggr.progress import PROGRESS_FILE_VARIABLE
from iceaggr.signals import TrainingInterruptedError, end_with_launcher
from iceaggr.steps.context import make_context
from iceaggr.steps.documents import ModelPointer, read_document
from iceaggr.steps.train_model import run_train_model
from iceaggr.steps.train_request import TrainAnswer, TrainRequest, read_request
from iceaggr.storage import open_store


def run_worker(request_uri: str, rank: int, launched: bool) -> None:
    """Take part in the training of a request; rank 0 tracks, reports and writes the result.

    launched: torchrun started this process with others, for us
    """
    if rank:
        # all processes reach the same points at the same time: one of them reports
        os.environ[PROGRESS_FILE_VARIABLE] = os.devnull
    store = open_store()
    request = read_request(store, request_uri)
    with TemporaryDirectory() as folder:
        answer = _train(request, Path(folder), is_main=rank == 0, launched=launched)
    if rank == 0:
        store.write_bytes(request.result_uri, answer.model_dump_json(indent=1).encode())


def _train(request: TrainRequest, folder: Path, *, is_main: bool, launched: bool) -> TrainAnswer:
    context = make_context(
        request.run_id,
        request.experiment_name,
        request.work_uri,
        request.config,
        tracked=request.tracked and is_main,
    )
    store = context.open_store()
    manifest, normalization = folder / MANIFEST, folder / NORMALIZATION
    store.download(request.manifest_uri, manifest)
    store.download(request.normalization_uri, normalization)
    facts = run_train_model(
        context,
        manifest,
        normalization,
        model_path=folder / "model.json",
        choices=request.choices,
        launched=launched,
        restarts=restarts_so_far(os.environ),
    )
    pointer = read_document(ModelPointer, folder / "model.json")
    return TrainAnswer(pointer=pointer, labels=facts.labels, figures=facts.figures)


def main() -> None:
    """Run as a program; every expected error ends in one line and an exit code."""
    *options, request_uri = sys.argv[1:]
    launched = TOGETHER in options
    rank = int(os.environ["RANK"]) if launched else 0
    try:
        # the step that takes over may have begun: two must not write checkpoints
        end_with_launcher(at_once=True)
        run_worker(request_uri, rank, launched)
    except TrainingInterruptedError as error:
        print(f"interrupted: {error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)
    except IceaggrError as error:
        if not note_ending(error, rank, os.environ):
            print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(1)
    except Exception as error:
        note_ending(error, rank, os.environ)
        raise


if __name__ == "__main__":
    main()
