from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from iceaggr.batches.event_batch import EventBatch
from iceaggr.config import NormalizationConfig
from iceaggr.errors import TrainingError
from iceaggr.models.normalizer import Normalizer
from iceaggr.normalization_document import Normalization
from iceaggr.training.guards import (
    GradientNorms,
    TakenStep,
    check_batch,
    check_step,
)
from tests.batches.batch_builder import random_event_batch

CONFIG = NormalizationConfig()
FINE = GradientNorms(("weight", "bias"), torch.ones(2))
EVENT_ID = torch.tensor([11, 12, 13, 14])


@pytest.fixture
def batch() -> EventBatch:
    batch = random_event_batch(4, seed=1)
    return replace(batch, event_id=EVENT_ID)


def check(batch: EventBatch, normalization: Normalization | None = None) -> None:
    normalizer = Normalizer(normalization or Normalization.seed())
    check_batch(batch, normalizer, CONFIG, "step 3")


def test_batch_passes_when_sound(batch: EventBatch) -> None:
    check(batch)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
def test_batch_with_a_bad_charge_names_its_event(batch: EventBatch, value: float) -> None:
    charge = batch.charge_pe.clone()
    pulses_before_third = batch.dom_pulse_offsets[batch.event_dom_offsets[2]]
    charge[pulses_before_third] = value
    with pytest.raises(TrainingError, match=r"refused before the model \[step 3\].*charge.*13"):
        check(replace(batch, charge_pe=charge))


def test_batch_of_raw_inputs_is_refused(batch: EventBatch) -> None:
    with pytest.raises(TrainingError, match="badly scaled"):
        check(batch, Normalization.raw())


def test_batch_without_labels_is_refused(batch: EventBatch) -> None:
    with pytest.raises(TrainingError, match=r"batch without labels.*event_id 11, 12"):
        check(replace(batch, direction=None))


@pytest.mark.parametrize("value", [float("nan"), 0.0, 2.0])
def test_batch_with_a_bad_label_names_its_event(batch: EventBatch, value: float) -> None:
    assert batch.direction is not None
    direction = batch.direction.clone()
    direction[1] *= value
    with pytest.raises(TrainingError, match=r"not a unit vector.*event_id 12,"):
        check(replace(batch, direction=direction))


def test_step_passes_when_finite(batch: EventBatch) -> None:
    check_step(torch.ones(4), FINE, EVENT_ID, nn.Linear(2, 2), "step 3")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_step_names_the_events_of_a_bad_loss(batch: EventBatch, value: float) -> None:
    loss = torch.tensor([1.0, value, 1.0, 1.0])
    with pytest.raises(TrainingError, match=r"loss is not finite \[step 3\].*1 of 4.*event_id 12,"):
        check_step(loss, FINE, EVENT_ID, nn.Linear(2, 2), "step 3")


def test_step_names_a_bad_weight_before_the_loss_it_spoils(batch: EventBatch) -> None:
    model = nn.Linear(2, 2)
    with torch.no_grad():
        model.bias[0] = float("nan")
    loss = torch.full((4,), float("nan"))
    with pytest.raises(TrainingError, match=r"weight is not finite.*found bias; event_id 11, 12"):
        check_step(loss, FINE, EVENT_ID, model, "step 3")


def test_step_names_a_bad_gradient(batch: EventBatch) -> None:
    model = nn.Linear(2, 2)
    model.weight.grad = torch.full((2, 2), float("nan"))
    model.bias.grad = torch.zeros(2)
    norms = GradientNorms.of(model)
    with pytest.raises(TrainingError, match=r"gradient is not finite.*found weight; event_id 11"):
        check_step(torch.ones(4), norms, EVENT_ID, model, "step 3")


def test_step_refuses_a_gradient_norm_that_overflows(batch: EventBatch) -> None:
    norms = GradientNorms(("weight", "bias"), torch.full((2,), 3e38))
    with pytest.raises(TrainingError, match="found their norm overflows; event_id 11"):
        check_step(torch.ones(4), norms, EVENT_ID, nn.Linear(2, 2), "step 3")


def test_spoiled_weights_are_named(batch: EventBatch) -> None:
    model = nn.Linear(2, 2)
    TakenStep.of(model.state_dict(), batch, torch.ones(4), FINE, "step 3").check(model)
    with torch.no_grad():
        model.weight[0, 0] = float("inf")
    taken = TakenStep.of(model.state_dict(), batch, torch.ones(4), FINE, "step 3")
    with pytest.raises(TrainingError, match=r"spoiled the weights \[step 3\].*found weight; event"):
        taken.check(model)


def test_step_looked_at_later_names_the_gradients_of_its_time(batch: EventBatch) -> None:
    model = nn.Linear(2, 2)
    spoiled = GradientNorms(("weight", "bias"), torch.tensor([1.0, float("nan")]))
    taken = TakenStep.of(model.state_dict(), batch, torch.ones(4), spoiled, "step 3")
    with pytest.raises(TrainingError, match=r"gradient is not finite \[step 3\].*found bias;"):
        taken.check(model)
