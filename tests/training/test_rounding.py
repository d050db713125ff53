from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from iceaggr.errors import TrainingError
from iceaggr.signals import TrainingInterruptedError
from iceaggr.training import TrainingInputs, TrainingProgress, train
from iceaggr.training.checkpoint import CheckpointFolder
from iceaggr.training.keeper import Rounding, fixed_threads, go_on_with
from tests.training.small_runs import (
    RecordingTracker,
    same_weights,
    small_config,
    small_inputs,
)

CPU = torch.device("cpu")
# wide and long enough that torch divides the sums among its threads
WIDE = {"d_model": 64, "dropout": 0.0}
two_cores = pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two cores")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def inputs_of(folder: Path, **training: float) -> TrainingInputs:
    config = small_config(
        model=WIDE,
        batches={"n_events": 64},
        training={"n_epochs": 3, "log_every_n_steps": 1, **training},
    )
    return small_inputs(folder, config, n_train=128, tracker=RecordingTracker())


def stop_after_two_steps(inputs: TrainingInputs) -> None:
    def stop(progress: TrainingProgress) -> None:
        if progress.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(TrainingInterruptedError, match="asked to stop"):
        train(inputs, stop)


def tags(inputs: TrainingInputs) -> dict[str, str]:
    assert isinstance(inputs.tracker, RecordingTracker)
    return inputs.tracker.tags


def change_checkpoint(inputs: TrainingInputs, **changes: object) -> None:
    """Write the newest checkpoint again with another document."""
    folder = CheckpointFolder(inputs.store, inputs.output_uri, 2)
    checkpoint = folder.read_latest()
    assert checkpoint is not None
    document = {**checkpoint.document, **changes}
    kept = {name: value for name, value in document.items() if value is not None}
    step = document["state"]["step"]
    folder.write(step, replace(checkpoint, document=json.loads(json.dumps(kept))))


@two_cores
def test_run_resumed_with_another_number_of_threads_ends_with_the_same_bits(
    tmp_path: Path,
) -> None:
    whole, stopped = inputs_of(tmp_path / "whole"), inputs_of(tmp_path / "stopped")
    train(whole)
    stop_after_two_steps(stopped)
    torch.set_num_threads(2)
    train(stopped)
    assert same_weights(whole, stopped)
    assert "training/rounding_changed" not in tags(stopped)
    assert torch.get_num_threads() == 2  # as the caller left it


@two_cores
def test_run_by_the_clock_takes_the_threads_there_are_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    inputs = inputs_of(tmp_path, max_minutes=5.0)
    stop_after_two_steps(inputs)
    torch.set_num_threads(2)
    train(inputs)
    words = "step 2: n_threads was 1, is 2: the run goes on, but not bit for bit"
    assert words in caplog.messages
    assert tags(inputs)["training/rounding_changed"] == "from step 2 on: n_threads was 1, is 2"


def test_run_resumed_with_another_torch_says_so_in_every_later_attempt(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    inputs = inputs_of(tmp_path)
    stop_after_two_steps(inputs)
    older = replace(Rounding.present(CPU), torch_version="1.0.0", device="abacus")
    change_checkpoint(inputs, rounding=[asdict(older)])
    train(inputs)
    (warning,) = [m for m in caplog.messages if "not bit for bit" in m]
    assert f"torch_version was 1.0.0, is {torch.__version__}; device was abacus, is " in warning
    tags(inputs).clear()
    train(inputs)
    assert tags(inputs)["training/rounding_changed"].startswith(
        "from step 2 on: torch_version was 1.0.0"
    )


def test_checkpoint_of_before_rounding_was_noted_is_resumed(tmp_path: Path) -> None:
    whole, stopped = inputs_of(tmp_path / "whole"), inputs_of(tmp_path / "stopped")
    train(whole)
    stop_after_two_steps(stopped)
    change_checkpoint(stopped, rounding=None, rounding_changes=None)
    train(stopped)
    assert same_weights(whole, stopped)
    assert "training/rounding_changed" not in tags(stopped)


@pytest.mark.parametrize(
    "rounding", [[], 7, [{"n_threads": "many", "torch_version": "2", "device": "x"}]]
)
def test_checkpoint_whose_rounding_is_damaged_is_refused(tmp_path: Path, rounding: object) -> None:
    inputs = inputs_of(tmp_path)
    stop_after_two_steps(inputs)
    change_checkpoint(inputs, rounding=rounding)
    with pytest.raises(TrainingError, match="checkpoint does not fit this program"):
        train(inputs)


def test_threads_that_the_machine_does_not_have_are_named_instead() -> None:
    present = Rounding.present(CPU)
    stored = [asdict(replace(present, n_threads=100_000))]
    changes = go_on_with(stored, 0, CPU, set_threads=True)
    assert changes == [f"n_threads was 100000, is {present.n_threads}"]
    assert torch.get_num_threads() == present.n_threads


def test_threads_are_left_alone_where_the_bits_differ_anyhow() -> None:
    stored = [asdict(replace(Rounding.present(CPU), n_threads=2, torch_version="1.0.0"))]
    assert len(go_on_with(stored, 0, CPU, set_threads=True)) == 2
    assert torch.get_num_threads() == 1


def test_fixed_threads_are_put_back() -> None:
    with fixed_threads():
        torch.set_num_threads(2)
    assert torch.get_num_threads() == 1
