"""Trains below a folder; run as a program it is killed and restarted until it has finished.

    python -m tests.training.resume_worker FOLDER N_KILLS SEED

The first process imports everything once and forks a trainer, which it kills with SIGKILL after a
random time, N_KILLS times, and then lets finish. Prints how often a kill met a running trainer.
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
EVERY_STEP = {"checkpoint_every_minutes": 1e-9, "ema_decay": 0.9, "n_epochs": 40}


def resume_config() -> ExperimentConfig:
    """Give the configuration of the runs that are killed."""
    return small_config(training=EVERY_STEP, batches={"n_workers": 1})


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


def main(folder: Path, n_kills: int, seed: int) -> int:
    """Kill and restart, then let the run finish. Returns the exit code of the last trainer."""
    torch.set_num_threads(1)
    inputs = resume_inputs(folder)
    rng = random.Random(seed)
    n_met = 0
    for _ in range(n_kills):
        process = _trainer(inputs)
        time.sleep(rng.uniform(0.05, 0.5))
        os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
        if os.WIFSIGNALED(status):
            n_met += 1
        elif os.WEXITSTATUS(status):
            return os.WEXITSTATUS(status)
    _, status = os.waitpid(_trainer(inputs), 0)
    print(n_met)
    return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
