from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from iceaggr.angles import opening_angle
from iceaggr.batches.event_batch import EventBatch
from iceaggr.errors import TrainingError
from iceaggr.models import DirectionOutput
from iceaggr.normalization import Normalization, Normalizer
from iceaggr.training.distributed import Processes
from iceaggr.training.validation import Validator, best_constant
from tests.batches.batch_builder import assemble, track_events
from tests.training.small_runs import small_config


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
    model = Constant(best_constant(truth(loader, 4).double()))
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


def test_best_constant_is_close_to_the_centre_of_a_cluster() -> None:
    centre = nn.functional.normalize(torch.tensor([0.3, -0.5, 0.8], dtype=torch.float64), dim=0)
    torch.manual_seed(0)
    cluster = nn.functional.normalize(
        centre + 0.1 * torch.randn(500, 3, dtype=torch.float64), dim=-1
    )
    found = best_constant(cluster)
    assert float(found.norm()) == pytest.approx(1.0)
    assert math.degrees(float(opening_angle(found, centre))) < 12


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
