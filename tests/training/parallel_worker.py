"""One process of a run that torchrun started; writes its curves as JSON.

python -m tests.training.parallel_worker FOLDER BATCH_SIZE N_TRAIN
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch

from iceaggr.training import train
from tests.training.small_runs import RecordingTracker, small_config, small_inputs


def main(folder: Path, n_events: int, n_train: int) -> None:
    """Train with n_events per process and step; only the process that tracks writes."""
    torch.set_num_threads(1)
    config = small_config(
        batches={"n_events": n_events},
        model={"dropout": 0.0},
        training={"log_every_n_steps": 1, "schedule": "one_cycle", "n_epochs": 3},
    )
    tracker = RecordingTracker()
    inputs = small_inputs(folder, config, n_train=n_train)
    result = train(replace(inputs, tracker=tracker), launched=True)
    if tracker.points:
        curves = {
            name: tracker.curve(name)
            for name in (
                "train/loss",
                "train/gradient_norm",
                "train/n_events_left_out",
                "validation/opening_angle_deg",
            )
        }
        text = json.dumps({"curves": curves, "n_events_seen": result.n_events_seen})
        (folder / "curves.json").write_text(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
