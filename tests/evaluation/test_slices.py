"""Slices: every event in exactly one bin of each dimension, small bins marked."""

import math
from functools import partial

import numpy as np
import pandas as pd
import pytest

from iceaggr.config import EvaluationConfig
from iceaggr.errors import EvaluationError
from iceaggr.evaluation.slices import (
    DIMENSIONS,
    N_GROUPS,
    STATISTICS,
    Dimension,
    available_dimensions,
    bin_label,
    dimension_bins,
    estimate_angles,
    estimate_mean,
    estimate_median,
    estimate_share,
    slice_column,
    slice_table,
)

# Bootstrap intervals against theory and against plain resampling.


def angles(n_events: int, seed: int = 0) -> np.ndarray:
    return np.rad2deg(np.arccos(np.random.default_rng(seed).uniform(-1, 1, n_events)))


def plain_bootstrap(values: np.ndarray, statistic, n_samples: int = 2000) -> np.ndarray:
    rng = np.random.default_rng(1)
    return np.array([statistic(rng.choice(values, len(values))) for _ in range(n_samples)])


@pytest.mark.parametrize(
    ("name", "statistic"),
    [
        ("mean", np.mean),
        ("median", np.median),
        ("p68", partial(np.quantile, q=0.68)),
        ("p90", partial(np.quantile, q=0.9)),
        ("share_above_90", lambda x: np.mean(x > 90)),
    ],
)
def test_estimate_agrees_with_plain_resampling(name, statistic):
    values = angles(2000)
    found = estimate_angles(values, 4000, 0.9, np.random.default_rng(2))[name]
    samples = plain_bootstrap(values, statistic)
    assert found.value == pytest.approx(statistic(values))
    assert found.error == pytest.approx(samples.std(), rel=0.1)
    low, high = np.quantile(samples, [0.05, 0.95])
    assert found.low == pytest.approx(low, abs=0.25 * samples.std())
    assert found.high == pytest.approx(high, abs=0.25 * samples.std())


def test_mean_interval_has_the_width_of_the_standard_error_when_grouped():
    values = angles(20 * N_GROUPS)
    found = estimate_mean(values, 2000, 0.95, np.random.default_rng(0))
    assert found.error == pytest.approx(values.std(ddof=1) / math.sqrt(len(values)))
    assert (found.high - found.low) / (2 * 1.96 * found.error) == pytest.approx(1.0, abs=0.06)


def test_interval_covers_the_true_mean_as_often_as_it_says():
    n_tries, covered = 150, 0
    for seed in range(n_tries):
        found = estimate_mean(angles(150, seed), 300, 0.8, np.random.default_rng(seed))
        covered += found.low <= 90.0 <= found.high
    assert covered / n_tries == pytest.approx(0.8, abs=0.1)


def test_estimates_have_no_error_when_there_is_one_event():
    found = estimate_angles(np.array([12.0]), 100, 0.95, np.random.default_rng(0))
    assert set(found) == set(STATISTICS)
    assert found["median"].value == 12.0
    assert all(math.isnan(estimate.error) for estimate in found.values())


def test_share_of_none_may_still_be_larger_than_none():
    found = estimate_angles(angles(50) / 180, 100, 0.95, np.random.default_rng(0))["share_above_90"]
    z = 1.959964
    assert (found.value, found.low) == (0.0, 0.0)
    assert found.high == pytest.approx(z**2 / (50 + z**2), rel=1e-5)
    assert found.error == pytest.approx(0.5 / 51, rel=1e-3)


def test_share_interval_is_wilsons():
    # 8 of 20 at 95 %: solve (p - 0.4)^2 = z^2 p (1 - p) / 20 for p
    found = estimate_share(8, 20, 0.95)
    z2 = 1.959964**2
    for edge in (found.low, found.high):
        assert (edge - 0.4) ** 2 == pytest.approx(z2 * edge * (1 - edge) / 20, rel=1e-4)
    assert found.low < 0.4 < found.high


def test_share_error_is_the_binomial_one_when_the_sample_is_large():
    found = estimate_share(30_000, 100_000, 0.9)
    assert found.error == pytest.approx(math.sqrt(0.3 * 0.7 / 100_000), rel=1e-3)


def test_share_refuses_no_events():
    with pytest.raises(EvaluationError, match="no event to score"):
        estimate_share(0, 0, 0.9)


def test_median_is_that_of_the_angles():
    values = angles(500)
    whole = estimate_angles(values, 3000, 0.9, np.random.default_rng(1))["median"]
    found = estimate_median(values, 3000, 0.9, np.random.default_rng(2))
    assert found.value == whole.value
    assert found.error == pytest.approx(whole.error, rel=0.1)
    assert math.isnan(estimate_median(values[:1], 10, 0.9, np.random.default_rng(0)).error)


def test_estimates_are_equal_for_equal_seeds():
    first, second = (
        estimate_angles(angles(99), 200, 0.95, np.random.default_rng(7)) for _ in range(2)
    )
    assert first == second


def test_estimate_refuses_values_that_are_not_finite():
    with pytest.raises(EvaluationError, match=r"not finite \[opening angles\]: found 1 of 3"):
        estimate_angles(np.array([1.0, np.nan, 2.0]), 100, 0.95, np.random.default_rng(0))


def test_estimate_refuses_no_events():
    with pytest.raises(EvaluationError, match="no event to score"):
        estimate_mean(np.array([]), 100, 0.95, np.random.default_rng(0))


def event_table(n_events: int = 600, truth: bool = True) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    events = pd.DataFrame(
        {
            "opening_angle_deg": rng.uniform(0, 180, n_events),
            "line_fit_angle_deg": rng.uniform(0, 180, n_events),
            "kappa": rng.exponential(5, n_events),
            "true_azimuth": rng.uniform(0, 2 * np.pi, n_events),
            "true_zenith": np.arccos(rng.uniform(-1, 1, n_events)),
            "n_pulses": rng.integers(5, 4000, n_events),
            "n_doms": rng.integers(1, 900, n_events),
            "n_non_auxiliary": rng.integers(0, 500, n_events),
            "charge_pe": rng.exponential(200, n_events),
        }
    )
    if truth:
        events["energy_gev"] = 10 ** rng.uniform(-1, 9, n_events)
        events["topology"] = np.where(rng.random(n_events) < 0.5, "track", "cascade")
        events["contained"] = rng.random(n_events) < 0.5
        events["coincident_muon"] = rng.random(n_events) < 0.3
    return events


@pytest.mark.parametrize("dimension", DIMENSIONS, ids=lambda dimension: dimension.name)
def test_bins_hold_every_event_of_their_topology_once(dimension):
    events = event_table()
    held = sum(inside.astype(int) for _, _, inside in dimension_bins(events, dimension))
    chosen = True if dimension.topology is None else events["topology"] == dimension.topology
    assert np.array_equal(held, np.ones(len(events), int) * chosen)


def test_bin_holds_its_lower_edge_and_not_its_upper_one():
    dimension = Dimension("n_doms", "DOMs", "n_doms", (0, 8, 16))
    events = pd.DataFrame({"n_doms": [7, 8, 15, 16]})
    found = {
        (low, high): inside.tolist() for low, high, inside in dimension_bins(events, dimension)
    }
    assert found == {
        (0, 8): [True, False, False, False],
        (8, 16): [False, True, True, False],
        (16, np.inf): [False, False, False, True],
    }


def test_dimensions_of_the_truth_are_left_out_without_it():
    names = {dimension.name for dimension in available_dimensions(event_table(truth=False))}
    of_truth = {"energy_track", "energy_cascade", "contained", "coincident_muon"}
    assert names == {d.name for d in DIMENSIONS} - of_truth


def test_sizes_known_only_within_the_caps_say_so():
    limited = {d.name for d in DIMENSIONS if "(within the model's caps)" in d.title}
    assert limited == {"n_non_auxiliary", "charge"}


def test_every_azimuth_is_in_a_bin():
    events = pd.DataFrame({"true_azimuth": [0.0, np.deg2rad(59.0), np.pi, np.float32(2 * np.pi)]})
    assert slice_column(events, "azimuth_deg")[:3] == pytest.approx([0.0, 59.0, 180.0])
    azimuth = next(one for one in DIMENSIONS if one.name == "azimuth")
    found = {low: int(inside.sum()) for low, _, inside in dimension_bins(events, azimuth)}
    assert found == {0: 2, 60: 0, 120: 0, 180: 1, 240: 0, 300: 1}


def test_slice_table_marks_small_bins_and_keeps_them():
    config = EvaluationConfig(n_bootstrap=100, min_events_per_bin=70)
    table = slice_table(event_table(), config, "line_fit")
    assert table["small"].any()
    assert not table["small"].all()
    assert (table["small"] == (table["n_events"] < 70)).all()
    zenith = table[table["dimension"] == "zenith"]
    assert zenith["n_events"].sum() == 600


def test_slice_table_measures_each_bin_by_itself():
    events = event_table()
    table = slice_table(events, EvaluationConfig(n_bootstrap=100), "line_fit")
    row = table[(table["dimension"] == "n_doms") & (table["low"] == 64)].iloc[0]
    inside = events[(events["n_doms"] >= 64) & (events["n_doms"] < 128)]
    assert row["n_events"] == len(inside)
    assert row["mean"] == pytest.approx(inside["opening_angle_deg"].mean())
    gain = inside["line_fit_angle_deg"] - inside["opening_angle_deg"]
    assert row["gain"] == pytest.approx(gain.mean())
    assert row["gain_error"] == pytest.approx(gain.std() / np.sqrt(len(inside)))


def test_slice_table_gives_every_figure_an_interval_around_it():
    table = slice_table(event_table(), EvaluationConfig(n_bootstrap=200), "line_fit")
    table = table[table["n_events"] > 1]
    for name in ("share_above_90", "coverage_68", "gain"):
        assert (table[f"{name}_low"] <= table[name]).all()
        assert (table[name] <= table[f"{name}_high"]).all()
        assert (table[f"{name}_low"] < table[f"{name}_high"]).all()


def test_bin_labels_are_readable():
    dimension = Dimension("n", "n", "n", (0.0, 1.0))
    labels = [
        bin_label(dimension, low, high)
        for low, high in [(-np.inf, 10), (16, 32), (2048, np.inf), (31622.8, 1e5)]
    ]
    assert labels == ["< 10", "16 to 32", "≥ 2048", "3.2e4 to 1e5"]
    named = Dimension("contained", "Vertex", "contained", (0, 1), None, ("outside", "inside"))
    assert bin_label(named, 1, np.inf) == "inside"
