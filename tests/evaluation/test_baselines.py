"""The trivial baselines, and the bookkeeping around the classical fits."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from iceaggr.angles import best_constant_direction, opening_angle
from iceaggr.evaluation.baselines import (
    CLASSICAL_FITS,
    TITLES,
    BaselineTimer,
    constant_angles_deg,
    random_angles_deg,
)
from iceaggr.evaluation.event_table import true_direction
from iceaggr.reconstruction import line_fit
from tests.evaluation.track_events import track_batch


def directions(n_events: int, seed: int, pull: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randn(n_events, 3, generator=generator, dtype=torch.float64)
    return nn.functional.normalize(raw + pull * torch.tensor([0.6, 0.0, -0.8]), dim=-1)


def test_random_angles_average_to_a_right_angle():
    found = random_angles_deg(directions(20_000, 0), seed=1)
    assert found.mean() == pytest.approx(90.0, abs=4 * 39.2 / np.sqrt(20_000))
    assert np.array_equal(found, random_angles_deg(directions(20_000, 0), seed=1))
    assert not np.array_equal(found, random_angles_deg(directions(20_000, 0), seed=2))


def test_best_constant_finds_the_centre_of_concentrated_events():
    best = best_constant_direction(directions(5000, 0, pull=4.0))
    expected = torch.tensor([[0.6, 0.0, -0.8]], dtype=torch.float64)
    assert torch.rad2deg(opening_angle(best[None], expected)).item() < 1.5


@pytest.mark.parametrize("pull", [0.0, 0.05, 1.0])
def test_best_constant_beats_every_direction_of_a_fine_grid(pull):
    true = directions(500, 3, pull)
    found = constant_angles_deg(true).mean()
    grid = directions(4000, 9)
    rivals = torch.rad2deg(torch.acos((grid @ true.T).clamp(-1, 1))).mean(dim=1)
    assert found <= rivals.min().item() + 0.02


def test_timer_measures_each_fit_on_each_event():
    timer = BaselineTimer(CLASSICAL_FITS)
    batch = track_batch(20, seed=0)
    found = timer.angles_deg(batch)
    assert set(found) == set(CLASSICAL_FITS)
    assert set(CLASSICAL_FITS) < set(TITLES)
    expected = opening_angle(line_fit(batch).direction.double(), true_direction(batch))
    assert found["line_fit"] == pytest.approx(torch.rad2deg(expected).numpy(), abs=1e-3)
    assert found["line_fit"].mean() < 10.0
    assert all(seconds > 0 for seconds in timer.seconds.values())
    assert set(timer.n_failed.values()) == {0}


def test_timer_counts_events_that_a_fit_cannot_reconstruct():
    batch = track_batch(6, seed=0)
    one_time = replace(batch, time_ns=torch.full_like(batch.time_ns, 1e4))
    timer = BaselineTimer({"line_fit": line_fit})
    found = timer.angles_deg(one_time)
    assert timer.n_failed == {"line_fit": 6}
    assert np.isfinite(found["line_fit"]).all()
