"""Trains twice below a folder: whole/ without a pause, killed/ with many.

    python -m tests.training.resume_worker FOLDER N_KILLS SEED

The first process imports everything once and forks trainers. It kills those of killed/ with SIGKILL
after a random time, N_KILLS times, and then lets the run finish. Prints how often a kill met a
running trainer.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from iceaggr.config import ExperimentConfig
from iceaggr.training import TrainingInputs, train
from tests.training.small_runs import small_config, small_inputs

# a checkpoint after every step, so that kills meet many writes
EVERY_STEP = {"checkpoint_every_minutes": 1e-9, "ema_decay": 0.9, "n_epochs": 6}
# what a run remembers of its events is lost with each kill
WITH_SEED = {"seed": "improved", "seed_frame": True, "seed_head": True}


def resume_config() -> ExperimentConfig:
    """Give the configuration of the runs that are killed."""
    return small_config(training=EVERY_STEP, model=WITH_SEED, batches={"n_workers": 1})


def resume_inputs(folder: Path) -> TrainingInputs:
    """Give the inputs of the runs that are killed; the shards are written once."""
    return small_inputs(folder, resume_config())


def _trainer(inputs: TrainingInputs) -> int:
    process = os.fork()
    if process == 0:
        try:
            train(inputs)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return process


def kill_and_restart(inputs: TrainingInputs, n_kills: int, seed: int) -> int:
    """Train with kills until the run has finished; returns how many met a running trainer."""
    rng = random.Random(seed)
    n_met = 0
    for _ in range(n_kills):
        process = _trainer(inputs)
        time.sleep(rng.uniform(0.02, 0.4))
        os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
        n_met += os.WIFSIGNALED(status)
        if os.WIFEXITED(status) and os.WEXITSTATUS(status):
            sys.exit("a restarted trainer failed")
    if os.waitpid(_trainer(inputs), 0)[1]:
        sys.exit("the last trainer failed")
    return n_met


def main(folder: Path, n_kills: int, seed: int) -> None:
    """Run both."""
    torch.set_num_threads(1)
    kill_and_restart(resume_inputs(folder / "whole"), 0, seed)
    print(kill_and_restart(resume_inputs(folder / "killed"), n_kills, seed))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
