"""Step 5: training, resumable, with checkpoints in object storage."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from iceaggr.progress import StepProgress
from iceaggr.steps.context import RunContext
from iceaggr.steps.documents import ModelPointer, write_document
from iceaggr.steps.train_request import TrainingFacts
from iceaggr.steps.training_choices import TrainingChoices
from iceaggr.steps.training_inputs import begin_from, choose_start, load_training_inputs
from iceaggr.training import TrainingProgress, TrainingResult, train


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
        tracker.log_params(_logged(choices, context))
        if restarts:
            words = "; ".join(restarts)
            tracker.set_tags(
                {"training/n_restarts": str(len(restarts)), "training/restarts": words}
            )
        start = choose_start(context)
        inputs = load_training_inputs(context, manifest_path, normalization_path, tracker)
        inputs = begin_from(start, inputs, tracker)
        result = train(
            inputs,
            lambda point: progress.update(point.share, 1.0, _words(point)),
            launched=launched,
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
        figures = {
            "n_steps": float(result.n_steps),
            "n_events_seen": float(result.n_events_seen),
            "minutes": result.minutes,
            "validation_opening_angle_deg": result.last_validation_opening_angle_deg,
        }
        progress.conclude(
            f"from {start.words}: {result.n_steps:,} steps in {result.minutes:.1f} min on"
            f" {_place(result)}, validation {result.last_validation_opening_angle_deg:.2f} deg"
            + (f", {len(restarts)} restarts" if restarts else "")
        )
        labels = {
            "model_uri": result.model_uri,
            "started_from": start.words,
            "trained_on": _place(result),
        }
        if restarts:
            labels["restarts"] = "; ".join(restarts)
        return TrainingFacts(labels, figures)


def _logged(choices: TrainingChoices, context: RunContext) -> dict[str, object]:
    return {
        "max_train_minutes": choices.max_minutes,
        "gpu_count": choices.gpu_count,
        "start_from": context.config.training.start_from,
    }


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
