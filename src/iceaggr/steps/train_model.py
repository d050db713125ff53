"""Step 5: training, resumable, with checkpoints in object storage."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

from iceaggr.config import ExperimentConfig
from iceaggr.errors import ConfigError
from iceaggr.progress import StepProgress
from iceaggr.steps.context import RunContext
from iceaggr.steps.documents import ModelPointer
from iceaggr.steps.training_inputs import load_training_inputs
from iceaggr.training import TrainingProgress, train


@dataclass(frozen=True)
class TrainingFacts:
    """What KFP shows of a training: labels on the model artifact, figures as metrics."""

    labels: dict[str, str]
    figures: dict[str, float]


def run_train_model(
    context: RunContext,
    manifest_path: Path,
    normalization_path: Path,
    *,
    model_path: Path,
    max_train_minutes: float,
    gpu_count: str,
) -> TrainingFacts:
    """Train the configured model and write a pointer to it; a retry resumes.

    Raises: ConfigError for a bad gpu_count; TrainingError.
    """
    config = apply_run_limits(context.config, max_train_minutes, gpu_count)
    context = replace(context, config=config)
    with (
        StepProgress("train_model", run_id=context.run_id) as progress,
        context.tracking("train_model") as tracker,
    ):
        tracker.log_params({"max_train_minutes": max_train_minutes, "gpu_count": gpu_count})
        inputs = load_training_inputs(context, manifest_path, normalization_path, tracker)

        def show(point: TrainingProgress) -> None:
            progress.update(point.share, 1.0, _words(point))

        result = train(inputs, on_progress=show)
        pointer = ModelPointer(
            model_uri=result.model_uri,
            manifest_digest=inputs.manifest.digest(),
            mlflow_run_id=tracker.run_id,
            n_steps=result.n_steps,
            stopped_because=result.stopped,
        )
        model_path.write_text(pointer.model_dump_json(indent=1))
        figures = {
            "n_steps": float(result.n_steps),
            "n_events_seen": float(result.n_events_seen),
            "minutes": result.minutes,
            "validation_opening_angle_deg": result.last_validation_opening_angle_deg,
        }
        progress.conclude(
            f"{result.n_steps:,} steps in {result.minutes:.1f} min,"
            f" validation {result.last_validation_opening_angle_deg:.2f} deg"
        )
        return TrainingFacts({"model_uri": result.model_uri}, figures)


def apply_run_limits(
    config: ExperimentConfig, max_train_minutes: float, gpu_count: str
) -> ExperimentConfig:
    """Lay the run's own limits over the settings.

    max_train_minutes: 0 leaves the configured limit.  gpu_count: "0" trains on the CPU.
    Raises: ConfigError unless gpu_count is a whole number and the minutes are not negative.
    """
    if not gpu_count.isdigit():
        raise ConfigError(
            "bad GPU count", where="gpu_count", found=repr(gpu_count), expected='"0", "1", ...'
        )
    if not max_train_minutes >= 0:
        raise ConfigError(
            "bad limit of training",
            where="max_train_minutes",
            found=max_train_minutes,
            expected="0 or more minutes",
        )
    changes: dict[str, object] = {"device": "cuda"} if int(gpu_count) else {"device": "cpu"}
    if max_train_minutes:
        changes["max_minutes"] = max_train_minutes
    return config.model_copy(update={"training": config.training.model_copy(update=changes)})


def _words(point: TrainingProgress) -> str:
    validated = point.validation_opening_angle_deg
    validation = "" if math.isnan(validated) else f"  validation {validated:.1f} deg"
    return (
        f"epoch {point.epoch + 1}  loss {point.loss:.3f}  train {point.opening_angle_deg:.1f} deg"
        f"{validation}  {point.events_per_s:,.0f} events/s"
    )
