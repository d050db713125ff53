"""Steps 4 and 5: a short training that must learn, and the training itself.

Step 5 runs in processes of its own, one per GPU:
python -m iceaggr.steps.train_model REQUEST_URI
torchrun ... -m iceaggr.steps.train_model --together REQUEST_URI
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from iceaggr.errors import IceaggrError
from iceaggr.interfaces import Tracker
from iceaggr.machines.supervision import TOGETHER, note_ending, restarts_so_far
from iceaggr.paths import MANIFEST, NORMALIZATION
from iceaggr.progress import PROGRESS_FILE_VARIABLE, StepProgress
from iceaggr.signals import TrainingInterruptedError, end_with_launcher
from iceaggr.steps.context import RunContext, make_context
from iceaggr.steps.documents import ModelPointer, read_document, write_document
from iceaggr.steps.train_request import TrainAnswer, TrainingFacts, TrainRequest, read_request
from iceaggr.steps.training_choices import TrainingChoices
from iceaggr.steps.training_inputs import begin_from, choose_start, load_training_inputs
from iceaggr.storage import open_store
from iceaggr.training import (
    LearningRow,
    TrainingProgress,
    TrainingResult,
    check_learning,
    learning_check_html,
    learning_check_table,
    learning_check_text,
    train,
)

# Step 4: a few dozen training steps that must learn before an expensive run may start.


def run_check_learning(
    context: RunContext,
    manifest_path: Path,
    normalization_path: Path,
    table_path: Path,
    *,
    full_table: bool = False,
) -> None:
    """Train for a few steps on the real shards with the configured rate.

    full_table: first try every learning rate, with normalised and with raw inputs.
    Raises: TrainingError when the loss is not finite or does not fall.
    """
    with (
        StepProgress("check_learning", run_id=context.run_id) as progress,
        context.tracking("check_learning") as tracker,
    ):
        inputs = load_training_inputs(context, manifest_path, normalization_path, tracker)
        rows = learning_check_table(inputs, _row_by_row(progress)) if full_table else []
        if rows:
            _keep(table_path, learning_check_html(rows, context.config.name), tracker)
            print(learning_check_text(rows), flush=True)
        checked = check_learning(inputs)
        _keep(table_path, learning_check_html([*rows, checked], context.config.name), tracker)
        progress.conclude(
            f"loss {checked.first_loss:.3f} -> {checked.last_loss:.3f} in"
            f" {context.config.learning_check.n_steps} steps: {checked.verdict}"
        )


def _row_by_row(progress: StepProgress) -> Callable[[LearningRow, int], None]:
    """Report each row of the table as soon as it is there."""
    done: list[LearningRow] = []

    def show(row: LearningRow, n_rows: int) -> None:
        done.append(row)
        words = (
            f"{row.inputs} inputs, rate {row.learning_rate:g}: loss {row.change:+.3f},"
            f" {row.verdict}"
        )
        progress.update(len(done), n_rows, words)

    return show


def _keep(path: Path, page: str, tracker: Tracker) -> None:
    write_document(path, page)
    tracker.log_text(page, "learning_check.html")


# Step 5: training, resumable, with checkpoints in object storage.


def run_train_model(
    context: RunContext,
    manifest_path: Path,
    normalization_path: Path,
    *,
    model_path: Path,
    choices: TrainingChoices,
    launched: bool = False,
    restarts: Sequence[str] = (),
) -> TrainingFacts:
    """Train the configured model and write a pointer to it; a retry resumes.

    launched: torchrun started this process with others, for us
    restarts: why the processes before this one ended, if it is not the first
    Raises: ConfigError for a bad choice; TrainingError.
    """
    context = replace(context, config=choices.applied_to(context.config))
    with (
        StepProgress("train_model", run_id=context.run_id) as progress,
        context.tracking("train_model") as tracker,
    ):
        tracker.log_params(
            {
                "max_train_minutes": context.config.training.max_minutes,
                "gpu_count": choices.gpu_count,
                "start_from": context.config.training.start_from,
            }
        )
        if restarts:
            n_restarts, words = str(len(restarts)), "; ".join(restarts)
            tracker.set_tags({"training/n_restarts": n_restarts, "training/restarts": words})
        start = choose_start(context)
        inputs = load_training_inputs(context, manifest_path, normalization_path, tracker)
        inputs = begin_from(start, inputs, tracker)
        result = train(
            inputs, lambda at: progress.update(at.share, 1.0, _words(at)), launched=launched
        )
        pointer = ModelPointer(
            model_uri=result.model_uri,
            manifest_digest=inputs.manifest.digest(),
            mlflow_run_id=tracker.run_id,
            n_steps=result.n_steps,
            stopped_because=result.stopped,
            started_from=start.words,
        )
        write_document(model_path, pointer.model_dump_json(indent=1))
        progress.conclude(
            f"from {start.words}: {result.n_steps:,} steps in {result.minutes:.1f} min on"
            f" {_place(result)}, validation {result.last_validation_opening_angle_deg:.2f} deg"
            + (f", {len(restarts)} restarts" if restarts else "")
        )
        return _facts(result, start.words, restarts)


def _facts(result: TrainingResult, started_from: str, restarts: Sequence[str]) -> TrainingFacts:
    labels = {
        "model_uri": result.model_uri,
        "started_from": started_from,
        "trained_on": _place(result),
    }
    if restarts:
        labels["restarts"] = "; ".join(restarts)
    figures = {
        "n_steps": float(result.n_steps),
        "n_events_seen": float(result.n_events_seen),
        "minutes": result.minutes,
        "validation_opening_angle_deg": result.last_validation_opening_angle_deg,
    }
    return TrainingFacts(labels, figures)


def _place(result: TrainingResult) -> str:
    n_processes = f" in {result.n_processes} processes" if result.n_processes > 1 else ""
    return f"{result.device}{n_processes}"


def _words(point: TrainingProgress) -> str:
    validated = point.validation_opening_angle_deg
    validation = "" if math.isnan(validated) else f"  validation {validated:.1f} deg"
    return (
        f"epoch {point.epoch + 1}  loss {point.loss:.3f}  train {point.opening_angle_deg:.1f} deg"
        f"{validation}  {point.events_per_s:,.0f} events/s"
    )


# The program of one of these processes.


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
