"""Slices: every event in exactly one bin of each dimension, small bins marked."""

import numpy as np
import pandas as pd
import pytest

from iceaggr.config import EvaluationConfig
from iceaggr.evaluation.slices import (
    DIMENSIONS,
    Dimension,
    available_dimensions,
    bin_label,
    dimension_bins,
    slice_column,
    slice_table,
)


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
    assert names == {d.name for d in DIMENSIONS} - {"energy_track", "energy_cascade", "contained"}


def test_sizes_known_only_within_the_caps_say_so():
    limited = {d.name for d in DIMENSIONS if "(within the model's caps)" in d.title}
    assert limited == {"n_non_auxiliary", "charge"}


def test_azimuth_is_folded_into_sixty_degrees():
    events = pd.DataFrame({"true_azimuth": np.deg2rad([0.0, 59.0, 61.0, 359.0])})
    assert slice_column(events, "azimuth_mod_60_deg") == pytest.approx([0.0, 59.0, 1.0, 59.0])
    turned = pd.DataFrame({"true_azimuth": np.deg2rad(60.0 * np.arange(6))})
    assert (slice_column(turned, "azimuth_mod_60_deg") < 60.0).all()


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
