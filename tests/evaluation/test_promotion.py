"""Promotion: only a paired gain beyond its error counts, and calibration may not get worse."""

import re

import numpy as np
import pandas as pd
import pytest

from iceaggr.config import PromotionConfig
from iceaggr.errors import EvaluationError
from iceaggr.evaluation.calibration import LEVELS
from iceaggr.evaluation.promotion import decide_promotion, refuse_false_confidence

CONFIG = PromotionConfig(min_sigma=2.0)


def event_table(shift_deg: float = 0.0, kappa: float = 20.0, seed: int = 0) -> pd.DataFrame:
    """Events whose angles follow kappa = 20, plus a shift; the same events for every call."""
    rng = np.random.default_rng(0)
    base = np.rad2deg(np.arccos(1 + np.log(rng.uniform(np.exp(-40), 1, 500)) / 20))
    own = np.random.default_rng(seed).normal(0, 0.5, 500)
    return pd.DataFrame(
        {
            "event_id": np.arange(500) * 7,
            "opening_angle_deg": np.abs(base + shift_deg + own),
            "constant_angle_deg": np.rad2deg(np.arccos(rng.uniform(-1, 1, 500))),
            "kappa": kappa,
        }
    )


def test_challenger_is_promoted_when_better_by_more_than_its_error():
    verdict = decide_promotion(event_table(-1.0, kappa=23.0, seed=1), event_table(), CONFIG)
    assert verdict.promote
    assert verdict.comparison.margin_deg == pytest.approx(1.0, abs=0.2)
    assert verdict.comparison.error_deg == pytest.approx(0.5 * np.sqrt(2 / 500), rel=0.2)
    assert verdict.comparison.n_events == 500
    assert verdict.reason.startswith("promoted: better than the champion by ")


def test_challenger_is_refused_when_the_gain_is_within_its_error():
    same = decide_promotion(event_table(-0.02, seed=1), event_table(), CONFIG)
    assert not same.promote
    margin, error = f"{same.comparison.margin_deg:.3f}", f"{same.comparison.error_deg:.3f}"
    assert abs(same.comparison.margin_deg) < same.comparison.error_deg
    assert same.reason == (
        f"not promoted: cannot be told from the champion ({margin} ± {error} deg on 500 paired"
        " test events); required are 2 σ and 0.01 deg"
    )


def test_challenger_is_refused_when_worse():
    verdict = decide_promotion(event_table(1.0, seed=1), event_table(), CONFIG)
    assert not verdict.promote
    assert verdict.comparison.margin_deg < 0
    assert "worse than the champion by" in verdict.reason


def test_champion_is_not_replaced_by_itself():
    verdict = decide_promotion(event_table(), event_table(), PromotionConfig(min_sigma=0.0))
    assert not verdict.promote
    assert "not promoted: equal to the champion on 500" in verdict.reason


def test_pairing_is_by_event_and_not_by_row():
    shuffled = event_table(-1.0, kappa=23.0, seed=1).sample(frac=1, random_state=0)
    ordered = decide_promotion(event_table(-1.0, kappa=23.0, seed=1), event_table(), CONFIG)
    assert decide_promotion(shuffled, event_table(), CONFIG) == ordered


def test_challenger_is_refused_when_calibration_is_worse():
    overconfident = event_table(-1.0, kappa=200.0, seed=1)
    verdict = decide_promotion(overconfident, event_table(), CONFIG)
    assert not verdict.promote
    assert verdict.reason.startswith("not promoted: calibration is worse by ")
    assert "of events lie in their 50 / 68 / 90 % regions" in verdict.reason
    assert " points, more than the allowed 2: " in verdict.reason
    assert "; though better than the champion by" in verdict.reason
    tolerant = PromotionConfig(min_sigma=2.0, max_calibration_loss=1.0)
    promoted = decide_promotion(overconfident, event_table(), tolerant)
    assert promoted.promote
    assert "; calibration is worse by " in promoted.reason
    assert " points, within the allowed 100: " in promoted.reason


def calibrated_table(n_events: int) -> pd.DataFrame:
    """Events whose angles follow their kappa of 20 exactly."""
    inside = np.random.default_rng(0).random(20_000)[:n_events]
    angle_deg = np.rad2deg(np.arccos(1 + np.log1p(-inside) / 20))
    return pd.DataFrame(
        {"event_id": np.arange(n_events), "opening_angle_deg": angle_deg, "kappa": 20.0}
    )


def slightly_better(champion: pd.DataFrame, kappa: object) -> pd.DataFrame:
    return champion.assign(opening_angle_deg=champion["opening_angle_deg"] * 0.98, kappa=kappa)


def test_calibration_loss_within_the_limit_is_called_worse_when_beyond_its_error():
    champion = calibrated_table(20_000)
    verdict = decide_promotion(slightly_better(champion, 22.0), champion, PromotionConfig())
    assert verdict.promote
    said = re.search(r"calibration is worse by (.*) ± (.*) points, within the all", verdict.reason)
    assert said is not None, verdict.reason
    # exactly: P(psi < 0.98 r) with 1 - cos r = -log(1 - level) / 22, mean over the levels
    exact = np.mean([level - (1 - (1 - level) ** (20 / 22 / 0.98**2)) for level in LEVELS])
    assert float(said[1]) == pytest.approx(100 * exact, abs=0.3)
    assert 0 < float(said[2]) < 0.2
    assert "not worse" not in verdict.reason


def test_calibration_loss_beyond_the_limit_but_within_its_error_is_refused_as_possible():
    champion = calibrated_table(20_000).iloc[120:160]
    kappa = np.random.default_rng(0).choice([12.0, 34.0], 40)
    verdict = decide_promotion(slightly_better(champion, kappa), champion, PromotionConfig())
    assert not verdict.promote
    assert "calibration may be worse by 7.0 ± 11.4 points, more than the allowed" in verdict.reason


def test_calibration_is_paired_by_event_and_not_by_row():
    challenger = event_table(-1.0, kappa=23.0, seed=1)
    shuffled = event_table().sample(frac=1, random_state=0)
    expected = decide_promotion(challenger, event_table(), CONFIG)
    assert decide_promotion(challenger, shuffled, CONFIG) == expected


def test_verdict_says_how_calibration_compares():
    reason = decide_promotion(event_table(-1.0, kappa=23.0, seed=1), event_table(), CONFIG).reason
    assert "; calibration is not worse" in reason
    champion = reason.split("of the champion's ")[1]
    shares = [float(share) for share in champion.split(" %")[0].split(" / ")]
    assert shares == pytest.approx([50.0, 68.0, 90.0], abs=7.0), "kappa 20 is true of these events"


def test_first_model_is_promoted_when_it_beats_the_best_constant():
    verdict = decide_promotion(event_table(), None, CONFIG)
    assert verdict.promote
    assert "best constant prediction (no champion yet)" in verdict.reason
    shares = re.search(
        r"; calibration: (.*) / (.*) / (.*) % \(off by (.*) points on average\)", verdict.reason
    )
    assert shares is not None, verdict.reason
    found = [float(figure) for figure in shares.groups()]
    assert found[:3] == pytest.approx([50.0, 68.0, 90.0], abs=7.0)
    assert found[3] == pytest.approx(np.abs(np.subtract(found[:3], [50, 68, 90])).mean(), abs=0.1)


def test_first_model_is_refused_when_it_is_no_better_than_a_constant():
    events = event_table()
    events["opening_angle_deg"] = events["constant_angle_deg"].to_numpy()[::-1]
    verdict = decide_promotion(events, None, CONFIG)
    assert not verdict.promote
    assert "best constant prediction" in verdict.reason


def test_different_events_are_an_error():
    with pytest.raises(EvaluationError, match=r"different events \[event_id 3493\]: found 1 event"):
        decide_promotion(event_table(), event_table().head(499), CONFIG)


def test_repeated_events_are_an_error():
    twice = pd.concat([event_table(), event_table()])
    with pytest.raises(EvaluationError, match=r"cannot be paired \[champion\]: found 1000 rows"):
        decide_promotion(event_table(), twice, CONFIG)


def test_first_model_needs_the_constant_baseline():
    with pytest.raises(EvaluationError, match="first champion has no rival"):
        decide_promotion(event_table().drop(columns="constant_angle_deg"), None, CONFIG)


def test_first_model_of_ruined_confidence_is_refused():
    ruined = event_table(kappa=81_377.0)
    verdict = decide_promotion(ruined, None, CONFIG)
    assert verdict.promote, "its angles alone would do"
    refused = refuse_false_confidence(verdict, ruined, CONFIG)
    assert not refused.promote
    assert refused.reason.startswith("not promoted: its confidence is worse than none: negative")
    assert "2.531 is that of knowing nothing" in refused.reason
    assert "though better than the best constant" in refused.reason


def test_model_of_grossly_wrong_coverage_is_refused_whatever_its_rival():
    timid = event_table(-1.0, kappa=2.0, seed=1)
    tolerant = PromotionConfig(max_calibration_loss=1.0)
    verdict = decide_promotion(timid, event_table(), tolerant)
    refused = refuse_false_confidence(verdict, timid, tolerant)
    assert verdict.promote
    assert not refused.promote
    assert "coverage is off by more than 25 points" in refused.reason


def test_model_of_true_confidence_passes():
    verdict = decide_promotion(event_table(), None, CONFIG)
    assert refuse_false_confidence(verdict, event_table(), CONFIG) == verdict


@pytest.mark.parametrize("noise_deg", [0.0, 1e-6, -1e-6, 4e-4])
def test_models_that_differ_by_less_than_is_shown_are_equal_and_neither_is_promoted(noise_deg):
    champion = event_table()
    nearly = champion.assign(opening_angle_deg=champion["opening_angle_deg"] + noise_deg)
    lax = PromotionConfig(min_sigma=0.0, min_gain_deg=0.0)
    verdict = decide_promotion(nearly, champion, lax)
    assert not verdict.promote
    assert verdict.reason.startswith("not promoted: equal to the champion ")
    assert "0.000 ±" not in verdict.reason


def test_equal_calibration_is_not_called_worse_by_nothing():
    champion = event_table()
    better = champion.assign(opening_angle_deg=champion["opening_angle_deg"] - 0.02)
    reason = decide_promotion(better, champion, PromotionConfig(max_calibration_loss=1.0)).reason
    assert "by 0.0 ±" not in reason


# A first model beside the fits that anyone can make.


def first_table(fit_gain_deg: float, spread_deg: float = 0.5) -> pd.DataFrame:
    """Events with a poor fit, and one that is better than the model by fit_gain_deg."""
    events = event_table()
    noise = np.random.default_rng(1).normal(0, spread_deg, len(events))
    noise -= noise.mean()
    best = events["opening_angle_deg"] - fit_gain_deg + noise
    return events.assign(
        line_fit_angle_deg=events["opening_angle_deg"] + 9.0, likelihood_fit_angle_deg=best
    )


def test_a_first_model_that_is_worse_than_the_best_fit_is_no_champion():
    verdict = decide_promotion(first_table(0.5), None, CONFIG)
    assert verdict.outcome == "refused"
    assert verdict.reason.startswith(
        "not promoted: worse than the best classical fit (Pandel likelihood fit) by 0.500 ± 0.02"
    )
    lead = ", which promotion.first_beats_fits allows no first model; though better than the "
    assert f"{lead}best constant prediction (no champion yet)" in verdict.reason
    allowed = decide_promotion(first_table(0.5), None, PromotionConfig(first_beats_fits=False))
    assert allowed.promote
    assert "classical fit" not in allowed.reason


@pytest.mark.parametrize(
    ("gain_deg", "spread_deg", "words"),
    [
        (-4.0, 0.5, "; better than the best classical fit (Pandel likelihood fit) by 4.000 ± 0.02"),
        (0.5, 20.0, "; cannot be told from the best classical fit (Pandel likelihood fit) (-0.5"),
        (0.0, 0.0, "; equal to the best classical fit (Pandel likelihood fit) on 500"),
    ],
)
def test_a_first_model_that_is_no_worse_than_the_best_fit_is_promoted(gain_deg, spread_deg, words):
    verdict = decide_promotion(first_table(gain_deg, spread_deg), None, CONFIG)
    assert verdict.promote
    assert words in verdict.reason


def test_fits_are_asked_of_the_first_model_only():
    assert decide_promotion(first_table(0.5), event_table(9.0, kappa=5.0), CONFIG).promote
    hopeless = first_table(0.5).assign(constant_angle_deg=0.0)
    assert "worse than the best constant" in decide_promotion(hopeless, None, CONFIG).reason
