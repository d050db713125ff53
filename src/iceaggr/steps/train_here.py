"""Step 5 on this machine: in one process per GPU, watched by this one, which stays small."""

from __future__ import annotations

from pathlib import Path

from iceaggr.machines.supervision import LIMITS, Limits
from iceaggr.machines.torchrun import run_here
from iceaggr.patience import ask_patiently, may_pass
from iceaggr.steps.context import RunContext
from iceaggr.steps.train_request import (
    TrainingFacts,
    decide_start,
    n_steps_saved,
    train_in_processes,
)
from iceaggr.steps.training_choices import TrainingChoices


def run_train_here(
    context: RunContext,
    documents: tuple[Path, Path],
    *,
    model_path: Path,
    choices: TrainingChoices,
    limits: Limits = LIMITS,
) -> TrainingFacts:
    """Train on this machine, with one process per GPU; a retry resumes.

    A process that is killed, runs out of memory or meets an error of its GPU is restarted from its
    checkpoint, within limits.
    documents: manifest and normalisation.
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
        documents,
        model_path=model_path,
        choices=choices,
        launch=lambda uri: run_here(
            uri, n_processes, lambda: n_steps_saved(store, context.run_uri), limits
        ),
        folder_name="here",
    )
