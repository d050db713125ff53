from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from iceaggr.training import (
    EXIT_CODE_INTERRUPTED,
    TrainingInterruptedError,
    TrainingProgress,
    train,
)
from iceaggr.training.validation import Validator
from tests.training.small_runs import (
    RecordingTracker,
    final_weights,
    same_weights,
    small_config,
    small_inputs,
)


def interrupting(at_step: int) -> Any:
    def on_progress(point: TrainingProgress) -> None:
        if point.step == at_step:
            os.kill(os.getpid(), signal.SIGTERM)

    return on_progress


@pytest.mark.parametrize("at_step", [2, 4, 8])
def test_sigterm_saves_and_the_same_call_goes_on(tmp_path: Path, at_step: int) -> None:
    config = small_config(training={"ema_decay": 0.9})
    whole, broken = (small_inputs(tmp_path / name, config) for name in ("whole", "broken"))
    train(whole)
    tracker = RecordingTracker()
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(TrainingInterruptedError, match="asked to stop") as caught:
        train(replace(broken, tracker=tracker), interrupting(at_step))
    assert caught.value.exit_code == EXIT_CODE_INTERRUPTED == 75
    assert tracker.tags["training/status"] == "interrupted"
    assert signal.getsignal(signal.SIGTERM) == handler
    result = train(broken)
    assert result.n_steps == 8
    assert same_weights(whole, broken)


def test_sigterm_during_the_last_validation_repeats_only_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    validate = Validator.run

    def interrupted(self: Validator, model: Any, progress: float, *rest: Any) -> Any:
        if progress == 1.0:
            os.kill(os.getpid(), signal.SIGTERM)
        return validate(self, model, progress, *rest)

    training = {"n_epochs": 100_000, "max_minutes": 1 / 60, "checkpoint_every_n_epochs": 1000}
    inputs = small_inputs(tmp_path, small_config(training=training))
    monkeypatch.setattr(Validator, "run", interrupted)
    with pytest.raises(TrainingInterruptedError, match="asked to stop"):
        train(inputs)
    monkeypatch.undo()
    weights, tracker = final_weights(inputs), RecordingTracker()
    result = train(replace(inputs, tracker=tracker))
    assert result.stopped == "time"
    assert len(tracker.curve("validation/opening_angle_deg")) == 1
    assert all(torch.equal(tensor, weights[n]) for n, tensor in final_weights(inputs).items())
