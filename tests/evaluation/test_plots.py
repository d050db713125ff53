"""The bins behind the figures: every event drawn, none alone."""

import numpy as np
import pandas as pd
import pytest

from iceaggr.evaluation.figure_style import bins_of, medians
from iceaggr.evaluation.plots import draw_against_azimuth


@pytest.mark.parametrize("min_events", [1, 7, 100])
def test_bins_hold_every_event_once_and_enough_of_them(min_events):
    values = np.random.default_rng(0).exponential(30.0, 500)
    bins = bins_of(values, (0.0, 1.0, 2.0, 50.0, 51.0, 60.0), min_events)
    assert np.array_equal(sum(inside.astype(int) for _, inside in bins), np.ones(500, int))
    assert all(inside.sum() >= min_events for _, inside in bins)
    assert [x for x, _ in bins] == sorted(x for x, _ in bins)


def test_bins_are_those_of_the_edges_when_all_are_full():
    values = np.arange(40.0)
    bins = bins_of(values, (0.0, 10.0, 20.0, 40.0), 10)
    assert [(x, int(inside.sum())) for x, inside in bins] == [(4.5, 10), (14.5, 10), (29.5, 20)]


def test_azimuth_is_folded_by_the_period_of_the_detector_and_by_no_other():
    rng = np.random.default_rng(2)
    azimuth_deg = rng.uniform(1.0, 119.0, 400) % 120 + rng.integers(0, 3, 400) * 120.0
    angles = {"opening_angle_deg": rng.exponential(5.0, 400), "constant_angle_deg": np.ones(400)}

    def drawn(turned_deg: float, period_deg: float) -> bytes:
        turned = np.deg2rad((azimuth_deg + turned_deg) % 360)
        events = pd.DataFrame({"true_azimuth": turned} | angles)
        return draw_against_azimuth(events, "constant", 10, period_deg)

    assert drawn(120, 120) == drawn(0, 120)
    assert drawn(120, 360) != drawn(0, 360)
    assert drawn(60, 120) != drawn(0, 120)


def test_there_is_no_bin_when_events_are_too_few():
    assert bins_of(np.arange(9.0), (0.0, 5.0, 9.0), 10) == []


def test_median_error_is_that_of_repeated_samples():
    rng = np.random.default_rng(1)
    of_samples = np.median(rng.exponential(1.0, (4000, 200)), axis=1)
    errors = [
        medians(rng.exponential(1.0, 200), [(0.0, np.ones(200, bool))])[1].mean()
        for _ in range(200)
    ]
    assert np.mean(errors) == pytest.approx(of_samples.std(), rel=0.1)
