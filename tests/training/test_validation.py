from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from iceaggr.angles import best_constant_direction, opening_angle
from iceaggr.batches.event_batch import EventBatch
from iceaggr.config import LossConfig, TrainingConfig, load_config
from iceaggr.errors import TrainingError
from iceaggr.losses import NATS_OF_IGNORANCE
from iceaggr.models import DirectionOutput
from iceaggr.models.normalizer import Normalizer
from iceaggr.normalization_document import Normalization
from iceaggr.training import train
from iceaggr.training.checkpoint import CheckpointFolder
from iceaggr.training.device import Processes
from iceaggr.training.step import OptimiserStep
from iceaggr.training.validation import (
    NotLearningError,
    ValidationResult,
    Validator,
    check_validation,
    check_windows,
    divergence,
    learning_problem,
    ruinous_excess,
    with_few_events,
)
from tests.batches.batch_builder import assemble, track_events
from tests.training.small_runs import RecordingTracker, small_config, small_inputs


class FixedBatches:
    """Batches in memory that notes how many were asked for."""

    position: dict[str, int]

    def __init__(self, n_batches: int) -> None:
        events = track_events(8 * n_batches, seed=2)
        self.batches = [assemble(events[i * 8 : i * 8 + 8]) for i in range(n_batches)]
        self.position = {}
        self.epochs: list[int] = []

    def epoch(self, epoch: int, position: Mapping[str, int] | None = None) -> Iterator[EventBatch]:
        self.epochs.append(epoch)
        yield from self.batches

    def n_batches(self, epoch: int) -> int:
        return len(self.batches)


class Tilted(nn.Module):
    """Predicts the true direction turned towards z by mixing; dropout shows the mode."""

    def forward(self, batch: EventBatch) -> DirectionOutput:
        assert not self.training
        assert batch.direction is not None
        return DirectionOutput(batch.direction + torch.tensor([0.0, 0.0, 0.5]))


class Constant(nn.Module):
    def __init__(self, direction: Tensor) -> None:
        super().__init__()
        self.register_buffer("direction", direction)

    def forward(self, batch: EventBatch) -> DirectionOutput:
        return DirectionOutput(self.get_buffer("direction").expand(batch.n_events, 3).float())


def validator(loader: FixedBatches, max_events: int = 1000) -> Validator:
    return Validator(
        loader=loader,
        normalizer=Normalizer(Normalization.seed()),
        config=small_config(training={"max_validation_events": max_events}),
        device=torch.device("cpu"),
        processes=Processes(),
        n_events=8 * len(loader.batches),
    )


def truth(loader: FixedBatches, n: int) -> Tensor:
    directions = [b.direction for b in loader.batches[:n] if b.direction is not None]
    return torch.cat(directions)


def test_validation_scores_the_model_in_evaluation_mode() -> None:
    loader, model = FixedBatches(4), Tilted().train()
    result = validator(loader).run(model, 0.0, lambda: False)
    true = truth(loader, 4)
    predicted = nn.functional.normalize(true + torch.tensor([0.0, 0.0, 0.5]), dim=-1)
    angle = torch.rad2deg(opening_angle(predicted.double(), true.double()))
    assert result is not None
    assert result.n_events == 32
    assert result.opening_angle_deg == pytest.approx(float(angle.mean()), abs=1e-4)
    assert result.mean_z == pytest.approx(float(predicted[:, 2].mean()), abs=1e-5)
    assert result.mean_vector_length == pytest.approx(float(predicted.mean(0).norm()), abs=1e-5)
    assert result.gain_deg == pytest.approx(
        result.constant_opening_angle_deg - result.opening_angle_deg
    )
    assert result.gain_error_deg > 0
    assert model.training


def test_validation_of_the_best_constant_gains_nothing() -> None:
    loader = FixedBatches(4)
    model = Constant(best_constant_direction(truth(loader, 4).double()))
    result = validator(loader).run(model, 0.0, lambda: False)
    assert result is not None
    assert result.gain_deg == pytest.approx(0.0, abs=1e-4)
    assert result.mean_vector_length == pytest.approx(1.0, abs=1e-5)


def test_validation_reads_the_same_bounded_events_each_time() -> None:
    loader = FixedBatches(4)
    results = [validator(loader, max_events=10).run(Tilted(), p, lambda: False) for p in (0, 0.5)]
    assert [r.n_events for r in results if r] == [16, 16]
    assert loader.epochs == [0, 0]


def test_validation_gives_up_when_asked_to_stop() -> None:
    assert validator(FixedBatches(4)).run(Tilted(), 0.0, lambda: True) is None


def test_validation_without_events_is_an_error() -> None:
    with pytest.raises(TrainingError, match="validation split is empty"):
        validator(FixedBatches(0)).run(Tilted(), 0.0, lambda: False)


def test_validation_metrics_are_points_of_named_curves(tmp_path: Path) -> None:
    result = validator(FixedBatches(2)).run(Tilted(), 0.0, lambda: False)
    assert result is not None
    metrics = result.metrics()
    assert metrics["validation/opening_angle_deg"] == result.opening_angle_deg
    assert all(name.startswith("validation/") for name in metrics)


class Seeded(nn.Module):
    """Predicts as Tilted does, from a seed that is the truth; certain, and so wrongly confident."""

    def forward(self, batch: EventBatch) -> DirectionOutput:
        assert batch.direction is not None
        tilted = nn.functional.normalize(batch.direction + torch.tensor([0.0, 0.0, 0.5]), dim=-1)
        return DirectionOutput(1000 * tilted, seed=batch.direction)


def test_validation_measures_likelihood_and_the_seed_on_the_same_events() -> None:
    result = validator(FixedBatches(4)).run(Seeded(), 0.0, lambda: False)
    assert result is not None
    assert result.seed_opening_angle_deg == pytest.approx(0.0, abs=0.1)
    assert result.gain_over_seed_deg == pytest.approx(-result.opening_angle_deg, abs=0.1)
    assert result.negative_log_likelihood > 10
    metrics = result.metrics()
    assert metrics["validation/information_nats"] == pytest.approx(
        math.log(4 * math.pi) - result.negative_log_likelihood
    )
    plain = validator(FixedBatches(4)).run(Tilted(), 0.0, lambda: False)
    assert plain is not None
    assert "validation/gain_over_seed_deg" not in plain.metrics()


class SpoiledEvent(nn.Module):
    def forward(self, batch: EventBatch) -> DirectionOutput:
        assert batch.direction is not None
        vector = batch.direction.clone()
        vector[2] = float("nan")
        return DirectionOutput(vector)


def test_prediction_that_is_not_finite_is_never_scored() -> None:
    with pytest.raises(TrainingError, match=r"prediction is not finite \[validation\].*2 of 16 ev"):
        validator(FixedBatches(2)).run(SpoiledEvent(), 0.0, lambda: False)


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
