"""The words and digits of the report: what is claimed must follow from the numbers."""

import math

import numpy as np
import pandas as pd
import pytest

from iceaggr.evaluation.report import (
    _calibration_sentence,
    _gain_sentence,
    _likelihood_sentence,
    coverage_rows,
    plus_minus,
    refined_claim,
    width_rows,
)
from iceaggr.evaluation.slices import Estimate


def estimate(value: float, error: float) -> Estimate:
    return Estimate(value, error, value - 2 * error, value + 2 * error)


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (56.308, 0.512, "56.31 ± 0.51"),
        (124.7, 1.04, "124.7 ± 1.0"),
        (-4.1333, 0.0253, "−4.133 ± 0.025"),
        (1234.0, 37.0, "1234 ± 37"),
        (3.14159, math.nan, "3.14"),
    ],
)
def test_error_decides_the_number_of_digits(value, error, text):
    assert plus_minus(estimate(value, error)) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (5.0, "Better than the line fit by 5.00 ± 0.50 deg (paired, 10σ)."),
        (-5.0, "Worse than the line fit by 5.00 ± 0.50 deg (paired, 10σ)."),
        (0.9, "Not distinguishable from the line fit: paired gain 0.90 ± 0.50 deg."),
    ],
)
def test_gain_is_named_only_beyond_its_error(value, text):
    assert _gain_sentence("line fit", estimate(value, 0.5)) == text


@pytest.mark.parametrize(
    ("power", "claim"),
    [(1.0, "calibrated within 3σ"), (2.0, "underconfident"), (0.5, "overconfident")],
)
def test_calibration_is_judged_by_all_levels(power, claim):
    pit = np.linspace(0, 1, 5001) ** power
    assert claim in _calibration_sentence(pit)


def test_likelihood_is_told_beside_that_of_claiming_nothing():
    told = _likelihood_sentence(estimate(1.234, 0.01))
    assert told.endswith("1.234 ± 0.010 nats per event; claiming nothing has 2.531.")
    assert "would be better" in _likelihood_sentence(estimate(2.6, 0.01))


def test_calibration_of_the_wrong_shape_is_called_that():
    pit = np.concatenate([np.full(600, 0.01), np.full(400, 0.99)])
    sentence = _calibration_sentence(pit)
    assert sentence.startswith(
        "60.0 ± 1.6 / 60.0 ± 1.5 / 60.0 ± 0.9 % of events lie in their 50 / 68 / 90 % regions"
    )
    assert "do not have the shape" in sentence


def test_coverage_is_counted_for_all_events_and_each_topology():
    # kappa 0 claims nothing: an angle of 90 degrees is the edge of the 50 % region
    angle_deg = np.repeat([60.0, 120.0], [30, 10])
    topology = np.repeat(["track", "cascade"], [30, 10])
    events = pd.DataFrame({"opening_angle_deg": angle_deg, "kappa": 0.0, "topology": topology})
    rows = {title: (n, found[0].share) for title, n, found in coverage_rows(events)}
    assert rows == {"All events": (40, 0.75), "Tracks": (30, 1.0), "Cascades": (10, 0.0)}
    assert [title for title, _, _ in coverage_rows(events.drop(columns="topology"))] == [
        "All events"
    ]


def test_tenths_by_kappa_are_told_with_claimed_and_found_width():
    kappa = np.repeat([2.0, 5000.0], [900, 100])
    events = pd.DataFrame({"opening_angle_deg": np.where(kappa > 2, 2.3, 60.0), "kappa": kappa})
    rows = width_rows(events)
    assert [row.n_events for row in rows] == [100] * 10
    # kappa 5000 claims sqrt(2 / 5000) = 1.146 degrees
    assert (rows[-1].claimed_deg, rows[-1].found_deg) == pytest.approx((1.146, 2.3), abs=1e-3)
    assert rows[-1].ratio == pytest.approx(2.0, rel=0.01)
    assert width_rows(events.drop(columns="kappa")) == []


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (5.0, "the model is 5.00 ± 0.50° better"),
        (-5.0, "the model is 5.00 ± 0.50° worse"),
        (0.9, "not distinguishable: gain 0.90 ± 0.50°"),
        (-0.9, "not distinguishable: gain −0.90 ± 0.50°"),
    ],
)
def test_first_screen_claims_a_difference_only_beyond_two_errors(value, words):
    from iceaggr.evaluation.metrics import MethodSummary
    from iceaggr.evaluation.report import first_screen

    def method(name: str, gain: float | None) -> MethodSummary:
        found = None if gain is None else estimate(gain, 0.5)
        return MethodSummary(name, name, {"mean": estimate(50.0, 0.5)}, found, {}, None, None)

    summaries = [method("model", None), method("constant", 30.0), method("line_fit", value)]
    tiles = first_screen(summaries, "Ours")
    assert tiles == [
        ("Ours", "50.00 ± 0.50", "mean opening angle"),
        ("line_fit", "50.00 ± 0.50", words),
    ]
    # without any fit the best constant direction is what is beaten
    assert [title for title, *_ in first_screen(summaries[:2], "Ours")] == ["Ours", "constant"]


def refined_rows(**coverage: tuple[float, float]) -> pd.DataFrame:
    """Make the rows of a refined table: part -> coverage of the 68 % region and its error."""
    rows = [
        {"part": part, "method": method, "n_events": n, "coverage_68": of, "coverage_68_error": e}
        for n, (part, (share, e)) in enumerate(coverage.items(), 20)
        for method, of in (("model", 0.68), ("refined", share))
    ]
    return pd.DataFrame(rows)


def test_refined_answers_that_claim_too_much_where_a_muon_crosses_are_called_that():
    table = refined_rows(all=(0.6, 0.1), nomuon=(0.7, 0.1), muon=(0.4, 0.1))
    assert refined_claim(table) == (
        "In their 68 % region lie 40 ± 10 % of the 22 refined events with an atmospheric muon in"
        " the readout, 70 ± 10 % of the 21 without: where a muon crosses, a refined answer claims"
        " too much"
    )
    unsure = refined_rows(all=(0.6, 0.1), nomuon=(0.7, 0.1), muon=(0.4, 0.15))
    assert refined_claim(unsure).endswith("70 ± 10 % of the 21 without")
    assert refined_claim(refined_rows(all=(0.6, 0.1), nomuon=(0.7, 0.1))) == ""
    assert refined_claim(pd.DataFrame()) == ""
