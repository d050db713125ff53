from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from iceaggr.training.checkpoint import CheckpointFolder
from tests.training.resume_worker import resume_inputs

ROOT = Path(__file__).parents[2]


def run_with_kills(folder: Path, n_kills: int, seed: int) -> int:
    """Run whole/ and killed/ below a folder; returns how many kills met a running trainer."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.training.resume_worker",
            str(folder),
            str(n_kills),
            str(seed),
        ],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def last_checkpoint(folder: Path) -> tuple[dict[str, torch.Tensor], int]:
    inputs = resume_inputs(folder)
    checkpoint = CheckpointFolder(inputs.store, inputs.output_uri, 1).read_latest()
    assert checkpoint is not None
    tensors = {
        f"{group}/{name}": tensor
        for group, named in checkpoint.tensors.items()
        for name, tensor in named.items()
    }
    return tensors, checkpoint.document["state"]["step"]


def check_kills_change_nothing(folder: Path, n_kills: int) -> None:
    n_met = run_with_kills(folder, n_kills, seed=1)
    assert n_met >= n_kills / 2, f"only {n_met} of {n_kills} kills met a running trainer"
    whole, n_steps = last_checkpoint(folder / "whole")
    killed, n_steps_killed = last_checkpoint(folder / "killed")
    assert n_steps == n_steps_killed == 24
    assert whole.keys() == killed.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, killed[name]), name


def test_run_killed_at_random_moments_ends_bit_identical(tmp_path: Path) -> None:
    check_kills_change_nothing(tmp_path, n_kills=3)


@pytest.mark.slow
def test_run_killed_twenty_times_ends_bit_identical(tmp_path: Path) -> None:
    check_kills_change_nothing(tmp_path, n_kills=20)
