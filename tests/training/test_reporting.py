from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from iceaggr.batches.event_batch import EventBatch
from iceaggr.training.device import Processes
from iceaggr.training.reporting import CurveWindow
from iceaggr.training.step import StepOutcome
from tests.batches.batch_builder import random_event_batch


def labelled(directions: list[list[float]]) -> EventBatch:
    return replace(random_event_batch(len(directions)), direction=torch.tensor(directions))


def test_point_averages_over_events_not_over_steps() -> None:
    window = CurveWindow(torch.device("cpu"))
    up, down, side = [0.0, 0.0, 1.0], [0.0, 0.0, -1.0], [1.0, 0.0, 0.0]
    small = StepOutcome(torch.tensor([4.0]), torch.tensor([down]) * 3, torch.tensor(1.0))
    large = StepOutcome(
        torch.tensor([1.0, 1.0, 2.0]), torch.tensor([up, up, side]) * 2, torch.tensor(3.0)
    )
    window.add(small, replace(labelled([up]), n_pulses_dropped=7))
    window.add(large, labelled([up, up, up]))
    n_pulses = labelled([up]).n_pulses + labelled([up, up, up]).n_pulses
    point = window.point(Processes(), learning_rate=0.5)
    assert point.loss == pytest.approx(2.0)
    assert point.opening_angle_deg == pytest.approx((180 + 0 + 0 + 90) / 4)
    assert point.mean_z == pytest.approx(1 / 4)
    assert point.mean_vector_length == pytest.approx(math.hypot(1, 1) / 4)
    assert point.mean_kappa == pytest.approx((3 + 2 + 2 + 2) / 4)
    assert point.gradient_norm == pytest.approx(2.0)
    assert point.learning_rate == 0.5
    assert point.pulses_dropped_share == pytest.approx(7 / (7 + n_pulses))
    assert point.memory_gib > 0.01
    assert window.is_empty


def test_speed_leaves_out_validation_and_checkpoints() -> None:
    window = CurveWindow(torch.device("cpu"))
    up = [[0.0, 0.0, 1.0]] * 10
    window.add(StepOutcome(torch.ones(10), torch.tensor(up), torch.ones(())), labelled(up))
    # so long that the seconds of this test itself are lost in it
    window._started -= 10_100.0
    window.waited(2_500.0)
    window.paused(100.0)
    point = window.point(Processes(), learning_rate=0.5)
    assert point.events_per_s == pytest.approx(0.001, rel=0.2)
    assert point.data_wait_share == pytest.approx(0.25, rel=0.2)


def test_metrics_are_named_as_curves_of_training() -> None:
    window = CurveWindow(torch.device("cpu"))
    up = [[0.0, 0.0, 1.0]]
    window.add(StepOutcome(torch.ones(1), torch.tensor(up), torch.ones(())), labelled(up))
    metrics = window.point(Processes(), learning_rate=0.5).metrics()
    assert metrics["train/learning_rate"] == 0.5
    assert all(name.startswith("train/") and math.isfinite(v) for name, v in metrics.items())
