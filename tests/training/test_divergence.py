from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from iceaggr.config import LossConfig, TrainingConfig, load_config
from iceaggr.errors import TrainingError
from iceaggr.losses import NATS_OF_IGNORANCE
from iceaggr.training import train
from iceaggr.training.checkpoint import CheckpointFolder
from iceaggr.training.divergence import (
    NotLearningError,
    check_validation,
    check_windows,
    divergence,
    learning_problem,
    ruinous_excess,
    with_few_events,
)
from iceaggr.training.step import OptimiserStep
from iceaggr.training.validation import ValidationResult
from tests.training.small_runs import RecordingTracker, small_config, small_inputs

VMF = LossConfig(kind="von_mises_fisher")
ANGLE = LossConfig(kind="angle")


def result(gain: float = 30.0, error: float = 1.0, length: float = 0.3) -> ValidationResult:
    return ValidationResult(
        n_events=100,
        loss=1.5,
        opening_angle_deg=88.0 - gain,
        median_opening_angle_deg=88.0,
        constant_opening_angle_deg=88.0,
        gain_deg=gain,
        gain_error_deg=error,
        mean_vector_length=length,
        mean_z=0.0,
        true_mean_z=0.0,
        negative_log_likelihood=1.5,
        negative_log_likelihood_error=0.01,
        seconds=1.0,
    )


def confident(nats: float, error: float = 0.01) -> ValidationResult:
    return replace(result(), negative_log_likelihood=nats, negative_log_likelihood_error=error)


def seeded(gain: float, error: float = 0.1) -> ValidationResult:
    return replace(
        result(),
        seed_opening_angle_deg=58.0 + gain,
        gain_over_seed_deg=gain,
        gain_over_seed_error_deg=error,
    )


@pytest.mark.parametrize(
    ("gain", "error", "length", "problem"),
    [
        (3.0, 1.0, 0.5, ""),
        (1.9, 1.0, 0.5, "no better than the best constant"),
        (-3.0, 1.0, 0.5, "no better than the best constant"),
        (float("nan"), 1.0, 0.5, "no better than the best constant"),
        (3.0, 1.0, 0.99, "collapsed to one direction"),
    ],
)
def test_learning_problem_is_put_in_words(
    gain: float, error: float, length: float, problem: str
) -> None:
    found = learning_problem(result(gain, error, length), small_config(), 0.5)
    assert (problem in found) if problem else found == ""


def test_run_that_does_not_learn_is_only_watched_unless_configured() -> None:
    problem = check_validation(result(0.0, 1.0, 0.5), small_config(), 0.5, step=10**6)
    assert "no better" in problem


def test_run_that_does_not_learn_stops_from_the_configured_step_on() -> None:
    config = small_config(training={"stop_if_not_learning_after_n_steps": 100})
    bad = result(0.0, 1.0, 0.5)
    assert "no better" in check_validation(bad, config, 0.5, step=99)
    with pytest.raises(TrainingError, match=r"does not learn \[step 100, 100 validation events\]"):
        check_validation(bad, config, 0.5, step=100)


def test_ruined_confidence_is_divergence_where_the_loss_trains_it() -> None:
    ruined = confident(12_814.0, 900.0)
    assert "confidence is far worse than none" in divergence(ruined, VMF, 0.5)
    assert divergence(ruined, ANGLE, 0.5) == "", "kappa means nothing there"
    untrained = LossConfig(kind="von_mises_fisher_then_angle", likelihood_share=0.0)
    assert divergence(ruined, untrained, 0.5), "still the likelihood"
    assert divergence(ruined, untrained, 0.9) == ""


def test_young_confidence_a_little_worse_than_none_is_no_divergence() -> None:
    assert divergence(confident(NATS_OF_IGNORANCE + 0.3), VMF, 0.0) == ""
    assert divergence(confident(NATS_OF_IGNORANCE + 5.0, 4.0), VMF, 0.0) == "", "within its error"
    config = small_config(loss={"kind": "von_mises_fisher"})
    problem = learning_problem(confident(NATS_OF_IGNORANCE + 0.3), config, 0.0)
    assert "confidence is worse than none" in problem


def test_overfitted_model_is_no_ruin_while_its_training_loss_is_fine() -> None:
    overfitted = confident(NATS_OF_IGNORANCE + 6.0)
    assert divergence(overfitted, VMF, 0.5, train_excess=-2.0) == ""
    assert "far worse than none" in divergence(overfitted, VMF, 0.5, train_excess=0.5)
    config = small_config(loss={"kind": "von_mises_fisher"})
    assert learning_problem(overfitted, config, 0.5, train_excess=-2.0) == ""
    assert "worse than none" in learning_problem(overfitted, config, 0.5, train_excess=0.5)


def test_model_that_knows_its_events_by_heart_may_fall_behind_its_seed() -> None:
    behind = seeded(-10.0)
    assert divergence(behind, VMF, 0.5, train_excess=-2.0) == ""
    assert learning_problem(behind, small_config(), 0.5, train_excess=-2.0) == ""


def test_model_worse_than_its_seed_does_not_learn_and_far_worse_has_diverged() -> None:
    assert learning_problem(seeded(2.0), small_config(), 0.5) == ""
    assert learning_problem(seeded(-0.1), small_config(), 0.5) == "", "within its error"
    assert "worse than the fit" in learning_problem(seeded(-1.6), small_config(), 0.5)
    assert divergence(seeded(-1.6), ANGLE, 0.5) == ""
    assert "58.00 against 48.00 degrees" in divergence(seeded(-10.0), ANGLE, 0.5)


def test_divergence_stops_at_any_step_unless_switched_off() -> None:
    with pytest.raises(TrainingError, match=r"training has diverged \[step 3, 100 validation"):
        check_validation(confident(50.0), small_config(loss={"kind": "von_mises_fisher"}), 0.1, 3)
    lenient = small_config(loss={"kind": "von_mises_fisher"}, training={"stop_if_diverged": False})
    assert "far worse than none" in check_validation(confident(50.0), lenient, 0.1, 3)


def test_windows_stop_a_run_only_when_several_in_a_row_are_ruin() -> None:
    check_windows(2, 1e6, TrainingConfig(), 100)
    check_windows(9, 1e6, TrainingConfig(stop_if_diverged=False), 100)
    with pytest.raises(TrainingError, match=r"diverged \[step 150\].*1e\+06 above.*3 windows"):
        check_windows(3, 1e6, TrainingConfig(), 150)


def test_ruinous_excess_is_in_the_unit_of_the_loss() -> None:
    then = LossConfig(kind="von_mises_fisher_then_angle", likelihood_share=0.3)
    assert ruinous_excess(VMF, 0.9) == ruinous_excess(then, 0.1) == 1.0
    assert ruinous_excess(then, 0.9) == pytest.approx(0.3)
    assert math.isinf(ruinous_excess(ANGLE, 0.5))


@pytest.mark.parametrize("name", ["laptop", "baseline_1m", "best"])
def test_shipped_settings_stop_what_has_diverged(name: str) -> None:
    assert load_config(f"configs/{name}.yaml").training.stop_if_diverged


def spoil_confidence(monkeypatch: pytest.MonkeyPatch, from_step: int) -> None:
    """Turn every prediction round and make it certain, as a ruined network does."""
    take = OptimiserStep.take

    def spoiled(self: OptimiserStep, batch: Any, step: int, *rest: Any) -> Any:
        outcome = take(self, batch, step, *rest)
        if step >= from_step:
            with torch.no_grad():
                self.model.head.out.bias.fill_(6.0)
        return outcome

    monkeypatch.setattr(OptimiserStep, "take", spoiled)


def test_diverged_run_fails_with_the_reason_and_keeps_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = RecordingTracker()
    config = small_config(loss={"kind": "von_mises_fisher"})
    inputs = small_inputs(tmp_path, config, tracker=tracker)
    spoil_confidence(monkeypatch, 6)
    with pytest.raises(TrainingError, match=r"training has diverged \[step 8.*far worse than none"):
        train(inputs)
    assert tracker.tags["training/status"] == "failed"
    assert "diverged" in tracker.tags["training/reason"]
    assert tracker.curve("train/n_diverged_windows")[-1] >= 1
    assert tracker.curve("validation/information_nats")[-1] < -1
    checkpoint = CheckpointFolder(inputs.store, inputs.output_uri, 1).read_latest()
    assert checkpoint is not None
    assert checkpoint.document["state"]["step"] == 4


def test_diverged_run_is_stopped_by_its_loss_between_validations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(
        loss={"kind": "von_mises_fisher"}, training={"n_epochs": 4, "log_every_n_steps": 1}
    )
    inputs = small_inputs(tmp_path, config, n_train=160)
    spoil_confidence(monkeypatch, 1)
    with pytest.raises(TrainingError, match=r"diverged \[step [45]\].*3 windows in a row"):
        train(inputs)


def test_spoiled_average_is_caught_and_never_scored_or_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = small_inputs(tmp_path, small_config(training={"ema_decay": 0.9}))
    take = OptimiserStep.take

    def spoiled(self: OptimiserStep, batch: Any, step: int, *rest: Any) -> Any:
        if step == 8:
            assert self.average is not None
            self.average.tensors["head.out.bias"].fill_(float("nan"))
        return take(self, batch, step, *rest)

    monkeypatch.setattr(OptimiserStep, "take", spoiled)
    with pytest.raises(TrainingError, match=r"\[step 8\].*average/head.out.bias; event_id"):
        train(inputs)
    checkpoint = CheckpointFolder(inputs.store, inputs.output_uri, 1).read_latest()
    assert checkpoint is not None
    assert checkpoint.document["state"]["step"] == 4


def test_spoiled_buffer_is_caught_before_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = small_inputs(tmp_path, small_config())
    take = OptimiserStep.take

    def spoiled(self: OptimiserStep, batch: Any, step: int, *rest: Any) -> Any:
        if step == 8:  # the features of the last batches are computed by then
            self.model.normalizer.scale[0] = float("nan")
        return take(self, batch, step, *rest)

    monkeypatch.setattr(OptimiserStep, "take", spoiled)
    with pytest.raises(TrainingError, match=r"\[step 8\].*(normalizer.scale|event_id)"):
        train(inputs)


def test_run_of_few_events_is_told_by_its_first_cause() -> None:
    error = NotLearningError("training has diverged", where="w", found="f", remedy="a lower rate")
    told = str(with_few_events(error, 12))
    assert told.startswith("too few events to learn from, and training has diverged")
    assert "12 train events; f" in told
    assert "lower rate" not in told
    assert with_few_events(error, 1000) is error
