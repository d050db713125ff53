"""Step 5 on this machine: in this process, or in one process per GPU."""

from __future__ import annotations

from pathlib import Path

from iceaggr.machines.torchrun import run_here
from iceaggr.steps.context import RunContext
from iceaggr.steps.train_model import TrainingFacts, run_train_model
from iceaggr.steps.train_request import train_in_processes
from iceaggr.steps.training_choices import TrainingChoices
from iceaggr.training.device import check_gpus


def run_train_here(
    context: RunContext,
    documents: tuple[Path, Path],
    *,
    model_path: Path,
    choices: TrainingChoices,
) -> TrainingFacts:
    """Train on this machine, with one process per GPU; a retry resumes.

    documents: manifest and normalisation.
    Raises: ConfigError for a bad choice; TrainingError, here if the machine lacks the GPUs.
    """
    n_processes = choices.n_processes
    check_gpus(choices.applied_to(context.config).training, n_processes)
    if n_processes == 1:
        return run_train_model(context, *documents, model_path=model_path, choices=choices)
    return train_in_processes(
        context,
        documents,
        model_path=model_path,
        choices=choices,
        launch=lambda uri: run_here(uri, n_processes),
    )
