"""Comparison of runs: paired, on shared events, with honest p-values."""

import numpy as np
import pandas as pd
import pytest

from iceaggr.config import EvaluationConfig
from iceaggr.errors import EvaluationError
from iceaggr.evaluation.comparison import _holm, compare_runs
from tests.evaluation.test_slices import event_table

CONFIG = EvaluationConfig(n_bootstrap=100)


def run(shift_deg: float, seed: int, n_events: int = 400) -> pd.DataFrame:
    events = event_table(n_events).assign(event_id=np.arange(n_events))
    noise = np.random.default_rng(seed).normal(shift_deg, 3.0, n_events)
    return events.assign(opening_angle_deg=np.abs(events["opening_angle_deg"] + noise))


def test_comparison_finds_a_difference_far_below_the_spread():
    found = compare_runs({"old": run(0.0, 1), "new": run(-1.0, 2)}, CONFIG)
    row = found.overall.set_index("model").loc["new"]
    assert row["difference"] == pytest.approx(-1.0, abs=0.6)
    assert row["low"] < row["difference"] < row["high"] < 0
    assert row["p_value"] < 0.01
    assert found.n_events == 400


def test_p_values_are_uniform_when_models_are_equal():
    p_values = [
        compare_runs({"a": run(0, 2 * seed), "b": run(0, 2 * seed + 1)}, CONFIG)
        .overall["p_value"]
        .iloc[1]
        for seed in range(1, 6)
    ]
    assert 0.15 < np.mean(p_values) < 0.85
    assert min(p_values) > 1e-3


def test_runs_are_paired_by_event_whatever_their_order():
    shuffled = run(-1.0, 2).sample(frac=1, random_state=0)
    ordered = compare_runs({"a": run(0, 1), "b": run(-1.0, 2)}, CONFIG)
    pd.testing.assert_frame_equal(
        compare_runs({"a": run(0, 1), "b": shuffled}, CONFIG).overall, ordered.overall
    )


def test_only_shared_events_count_and_the_text_says_so():
    found = compare_runs({"a": run(0, 1), "b": run(0, 2).tail(300)}, CONFIG)
    assert found.n_events == 300
    assert "Only shared events count; events of each: a 400, b 300" in found.text()


def test_text_and_page_show_every_model():
    runs = {"first": run(0, 1), "second <b>": run(-2, 2), "third [red]": run(2, 3).tail(300)}
    found = compare_runs(runs, CONFIG)
    assert all(name in found.text() for name in runs)
    assert "second &lt;b&gt;" in found.html
    assert "<b>" not in found.html
    assert "data:image/png;base64," in found.html
    assert "scored on different events" in found.html


def test_sentence_claims_no_more_than_the_p_value_allows():
    compared = compare_runs({"old": run(0, 1), "new": run(-2, 2), "same": run(0, 3)}, CONFIG)
    better, alike = compared.sentences()
    assert better.startswith("new is better than old by ")
    assert alike.startswith("same cannot be told from old")
    text = compared.text()
    assert better in " ".join(text.split())
    assert "luck of a training" in text
    reference, _ = [line for line in text.splitlines() if line.startswith(" old ")]
    assert "reference" in reference
    assert "+0.000" not in reference


def test_bins_of_kappa_name_the_model_that_predicted_it():
    titles = compare_runs({"old": run(0, 1), "new": run(-2, 2)}, CONFIG).bins["title"]
    assert "κ of old" in set(titles)


def test_text_names_the_bins_that_differ():
    worse = run(0, 1)
    few = worse["n_doms"] < 128
    worse.loc[few, "opening_angle_deg"] += 30 + np.random.default_rng(0).normal(0, 1, few.sum())
    text = compare_runs({"a": run(0, 1), "b": worse}, CONFIG).text()
    assert "b: " in text
    assert "bins differ from a at 5 % after correction" in text
    assert "DOMs, 64 to 128" in text


def test_bins_hold_the_same_events_for_both_models():
    found = compare_runs({"a": run(0, 1), "b": run(-2.0, 2)}, CONFIG)
    zenith = found.bins[found.bins["dimension"] == "zenith"]
    assert zenith["n_events"].sum() == 400
    mean = np.average(zenith["difference"], weights=zenith["n_events"])
    assert mean == pytest.approx(found.overall["difference"].iloc[1])


def test_holm_adjusts_as_published():
    # the worked steps: 0.01 * 4, 0.02 * 3, 0.03 * 2 raised to its predecessor, 0.8 * 1
    adjusted = _holm(np.array([0.03, 0.01, np.nan, 0.8, 0.02]))
    assert adjusted[[1, 4, 0, 3]] == pytest.approx([0.04, 0.06, 0.06, 0.8])
    assert np.isnan(adjusted[2])


def test_one_run_cannot_be_compared():
    with pytest.raises(EvaluationError, match="nothing to compare"):
        compare_runs({"a": run(0, 1)}, CONFIG)


def test_runs_without_shared_events_are_an_error():
    other = run(0, 2).assign(event_id=lambda table: table["event_id"] + 10_000)
    with pytest.raises(EvaluationError, match=r"share no test events \[a, b\]"):
        compare_runs({"a": run(0, 1), "b": other}, CONFIG)


def moved(events: pd.DataFrame, by_rad: float) -> pd.DataFrame:
    """Turn the true direction of the first event."""
    azimuth = events["true_azimuth"].to_numpy(copy=True)
    azimuth[0] += by_rad
    return events.assign(true_azimuth=azimuth)


@pytest.mark.parametrize("by_rad", [2e-4, -2e-4, 1e-3, np.pi])
def test_true_directions_that_differ_visibly_are_an_error(by_rad):
    with pytest.raises(EvaluationError, match="found 1 of 400 shared events"):
        compare_runs({"a": run(0, 1), "b": moved(run(0, 2), by_rad)}, CONFIG)


@pytest.mark.parametrize("by_rad", [5e-5, 2 * np.pi])
def test_true_directions_that_differ_by_rounding_or_a_turn_are_the_same(by_rad):
    assert compare_runs({"a": run(0, 1), "b": moved(run(0, 2), by_rad)}, CONFIG).n_events == 400


def test_runs_that_disagree_on_the_truth_are_an_error():
    other = run(0, 2).assign(true_zenith=lambda table: np.roll(table["true_zenith"], 1))
    with pytest.raises(EvaluationError, match=r"disagree on the true directions \[b\]"):
        compare_runs({"a": run(0, 1), "b": other}, CONFIG)


def test_shares_within_an_angle_are_compared_event_by_event():
    old, new = run(0, 1), run(-3.0, 2)
    found = compare_runs({"old": old, "new": new}, CONFIG)
    row = found.overall.set_index("model").loc["new"]
    change = (new["opening_angle_deg"] <= 5).astype(float) - (old["opening_angle_deg"] <= 5)
    assert row["within_5deg"] == (new["opening_angle_deg"] <= 5).mean()
    assert row["within_5deg_difference"] == pytest.approx(change.mean())
    assert row["within_5deg_error"] == pytest.approx(change.std(ddof=1) / 20)
    assert "within 5 deg [%]" in found.text()
    assert f"{100 * row['within_5deg']:.2f}" in found.html


def test_files_whose_directions_are_mirrored_are_paired_and_named():
    other = run(0, 2)
    flight = other.assign(
        true_zenith=np.pi - other["true_zenith"],
        true_azimuth=(other["true_azimuth"] + np.pi) % (2 * np.pi),
    )
    mirrored = other.assign(true_zenith=np.pi - other["true_zenith"])
    as_it_is = compare_runs({"a": run(0, 1), "b": other}, CONFIG)
    assert as_it_is.notes == ()
    for table, axes in ((flight, "x, y, z"), (mirrored, "z")):
        found = compare_runs({"a": run(0, 1), "b": table}, CONFIG)
        pd.testing.assert_frame_equal(found.overall, as_it_is.overall)
        assert f"b have the other sign in {axes} than those of a" in found.notes[0]
        assert found.notes[0] in " ".join(found.text().split())
        assert found.notes[0] in found.html
