"""Step 5 on this machine: in this process, or in one process per GPU."""

from __future__ import annotations

from pathlib import Path

from iceaggr.machines.torchrun import run_here
from iceaggr.steps.context import RunContext
from iceaggr.steps.train_model import TrainingFacts, apply_run_limits, run_train_model
from iceaggr.steps.train_request import train_in_processes


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
    apply_run_limits(context.config, max_train_minutes, gpu_count)
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
