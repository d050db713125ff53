"""The promotion decision: champion against challenger on the same test events, with its reason."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd

from iceaggr.config import PromotionConfig
from iceaggr.errors import EvaluationError
from iceaggr.evaluation.baselines import TITLES
from iceaggr.evaluation.calibration import (
    LEVELS,
    calibration_gap,
    calibration_loss,
    coverage,
    negative_log_likelihood,
)
from iceaggr.evaluation.evaluation import best_classical
from iceaggr.evaluation.event_table import pit_of
from iceaggr.losses import NATS_OF_IGNORANCE

EQUAL_WITHIN_DEG = 0.0005
"""Differences below this are shown as 0.000 deg: such models are equal, and none is better."""
_EQUAL_WITHIN_POINTS = 0.05

Degrees = np.ndarray[tuple[int], np.dtype[np.float64]]
Outcome = Literal["promoted", "refused", "not comparable", "not compared"]
"""Refused is a decision. Of models that are not comparable (other detector, other split) none can
be better; not compared means that the registry failed, and that the decision is still to be made.
"""


@dataclass(frozen=True)
class Comparison:
    """Opening angles of two models on the same test events.

    rival: the champion, or what stands for it
    margin_deg: mean of rival minus challenger, degrees, positive when the challenger is better;
    error_deg: its standard error
    n_left_out: test events of the challenger that the rival may have been trained with;
    rival_split: the split that says so.
    """

    rival: str
    margin_deg: float
    error_deg: float
    n_events: int
    n_left_out: int = 0
    rival_split: str = ""

    @property
    def is_equal(self) -> bool:
        """Whether the models differ by less than what is shown."""
        return max(abs(self.margin_deg), self.error_deg) < EQUAL_WITHIN_DEG

    def wins(self, limits: PromotionConfig) -> bool:
        """Tell whether the challenger is better beyond its error, and by enough."""
        beyond_error = self.margin_deg > limits.min_sigma * self.error_deg
        return beyond_error and self.margin_deg >= limits.min_gain_deg and not self.is_equal

    def loses(self, limits: PromotionConfig) -> bool:
        """Tell whether the challenger is worse beyond its error."""
        return self.margin_deg < -limits.min_sigma * self.error_deg and not self.is_equal


@dataclass(frozen=True)
class Calibration:
    """Coverage of the challenger, and of the champion if there is one, on the same events.

    shares: in words, of the regions of LEVELS.  loss: by how much the challenger's mean coverage
    error exceeds the champion's, a share of 1; error: its standard error.
    """

    shares: str
    champion_shares: str = ""
    loss: float = 0.0
    error: float = 0.0


@dataclass(frozen=True)
class Verdict:
    """Whether to promote, and what that was decided on; `reason` words it.

    fit: of a first model that beats its rival, the best classical fit, None where none was asked.
    calibration: looked at only if the angles win.  false_confidence: why kappa is not to be
    trusted, '' if it is.  obstacle, remedy: what stood in the way of a comparison.
    """

    outcome: Outcome
    limits: PromotionConfig
    comparison: Comparison | None = None
    fit: Comparison | None = None
    calibration: Calibration | None = None
    false_confidence: str = ""
    obstacle: str = ""
    remedy: str = ""

    @property
    def promote(self) -> bool:
        """Whether the challenger becomes the champion."""
        return self.outcome == "promoted"

    @property
    def reason(self) -> str:
        """Say what was decided and why, in one sentence."""
        return _worded(self)


def refuse_false_confidence(
    verdict: Verdict, challenger: pd.DataFrame, config: PromotionConfig
) -> Verdict:
    """Refuse a model whose kappa says less than nothing, or is grossly wrong, whatever its rival.

    challenger: event table with opening_angle_deg, kappa. Not for models whose loss trains no
    kappa. Returns the verdict as it was, or one that refuses with the reason before it.
    """
    if not verdict.promote:
        return verdict
    angle_rad = np.deg2rad(_angles(challenger, "opening"))
    nats = negative_log_likelihood(angle_rad, challenger["kappa"].to_numpy(np.float64))
    mean, error = float(nats.mean()), float(nats.std(ddof=1) / math.sqrt(len(nats)))
    pit = pit_of(challenger)
    why = ""
    if not mean < NATS_OF_IGNORANCE:
        why = (
            f"its confidence is worse than none: negative log-likelihood {mean:,.3f} ± {error:,.3f}"
            f" nats per event, {NATS_OF_IGNORANCE:.3f} is that of knowing nothing"
        )
    elif calibration_gap(pit) > config.max_calibration_gap:
        why = (
            f"its coverage is off by more than {100 * config.max_calibration_gap:g} points:"
            f" {_shares(pit)} of events lie in their {_levels()} % regions"
        )
    return replace(verdict, outcome="refused", false_confidence=why) if why else verdict


def decide_promotion(
    challenger: pd.DataFrame, champion: pd.DataFrame | None, config: PromotionConfig
) -> Verdict:
    """Decide whether a challenger becomes the champion.

    challenger, champion: event tables with event_id, opening_angle_deg, kappa; the challenger's
    also with constant_angle_deg, the rival while there is no champion. The challenger must win by
    more than min_sigma standard errors and by min_gain_deg, and against a champion must not be
    worse calibrated by more than max_calibration_loss. A first one must not lose against the best
    of the fits whose angles the table has (first_beats_fits): who fits needs no model.
    Raises: EvaluationError if the two tables do not hold the same events, or fewer than two.
    """
    challenger = _by_event(challenger, "challenger")
    compared = _compared(challenger, *_rival(challenger, champion))
    if not compared.wins(config):
        return Verdict("refused", config, compared)
    fit = None
    if champion is None and config.first_beats_fits:
        fit = _compared_with_fits(challenger)
        if fit is not None and fit.loses(config):
            return Verdict("refused", config, compared, fit)
    calibration = _calibration(challenger, champion)
    held = calibration.loss <= config.max_calibration_loss
    return Verdict("promoted" if held else "refused", config, compared, fit, calibration)


def _compared(challenger: pd.DataFrame, rival: str, rival_deg: Degrees) -> Comparison:
    difference = rival_deg - challenger["opening_angle_deg"].to_numpy()
    error = float(difference.std(ddof=1) / math.sqrt(len(difference)))
    return Comparison(rival, float(difference.mean()), error, len(difference))


def _compared_with_fits(challenger: pd.DataFrame) -> Comparison | None:
    """Compare with the classical fit of the smallest mean angle, None where the table has none."""
    name = best_classical(challenger)
    if name == "constant":
        return None
    return _compared(challenger, f"best classical fit ({TITLES[name]})", _angles(challenger, name))


def _worded(verdict: Verdict) -> str:
    if verdict.comparison is None:
        if verdict.outcome == "not compared":
            return f"promotion did not happen: {verdict.obstacle}. {verdict.remedy}"
        return f"not promoted: {verdict.obstacle}; {verdict.remedy}"
    limits, compared = verdict.limits, verdict.comparison
    parts = [
        _compared_words(compared),
        f"required are {limits.min_sigma:g} σ and {limits.min_gain_deg:g} deg",
    ]
    lead = ""
    if verdict.fit is not None:
        words = _compared_words(verdict.fit)
        if verdict.fit.loses(limits):
            lead = f"{words}, which promotion.first_beats_fits allows no first model; though "
        else:
            parts.append(words)
    if verdict.calibration is not None:
        words = _calibration_words(verdict.calibration, limits.max_calibration_loss)
        if verdict.calibration.loss > limits.max_calibration_loss:
            lead = f"{words}; though "
        else:
            parts.append(words)
    if verdict.false_confidence:
        lead = f"{verdict.false_confidence}; though "
    if compared.n_left_out:
        parts.append(
            f"left out are {compared.n_left_out:,} that are no test events of the champion's split"
            f" ({compared.rival_split})"
        )
    decided = "promoted" if verdict.promote else "not promoted"
    return f"{decided}: {lead}{'; '.join(parts)}"


def _compared_words(compared: Comparison) -> str:
    """Say what the difference is, and only what is beyond its error."""
    margin, error, rival = compared.margin_deg, compared.error_deg, compared.rival
    on_events = f"on {compared.n_events:,} paired test events"
    if compared.is_equal:
        exactly = "" if margin == 0 and error == 0 else f" to {EQUAL_WITHIN_DEG:g} deg"
        return f"equal to the {rival}{exactly} {on_events}"
    if abs(margin) <= error:
        return f"cannot be told from the {rival} ({margin:.3f} ± {error:.3f} deg {on_events})"
    direction = "better" if margin > 0 else "worse"
    return f"{direction} than the {rival} by {abs(margin):.3f} ± {error:.3f} deg {on_events}"


def _calibration_words(calibration: Calibration, allowed: float) -> str:
    if not calibration.champion_shares:
        return f"calibration: {calibration.shares} of events lie in their {_levels()} % regions"
    loss, error = 100 * calibration.loss, 100 * calibration.error
    by = f"by {loss:.1f} ± {error:.1f} points"
    measured = (
        f"{calibration.shares} of events lie in their {_levels()} % regions, of the champion's"
        f" {calibration.champion_shares}"
    )
    if calibration.loss > allowed:
        worse = "is worse" if loss > error else "may be worse"
        return f"calibration {worse} {by}, more than the allowed {100 * allowed:g}: {measured}"
    if loss < _EQUAL_WITHIN_POINTS:
        return f"calibration is not worse: {measured}"
    if loss > error:
        return f"calibration is worse {by}, within the allowed {100 * allowed:g}: {measured}"
    return f"calibration is not worse beyond its error ({by}): {measured}"


def _rival(challenger: pd.DataFrame, champion: pd.DataFrame | None) -> tuple[str, Degrees]:
    if champion is None:
        if "constant_angle_deg" not in challenger:
            raise EvaluationError(
                "the first champion has no rival",
                where="challenger",
                found=list(challenger.columns),
                expected="a column constant_angle_deg",
                remedy="Give the event table that evaluation wrote",
            )
        return "best constant prediction (no champion yet)", _angles(challenger, "constant")
    champion = _by_event(champion, "champion")
    only_one = challenger.index.symmetric_difference(champion.index)
    if len(only_one):
        raise EvaluationError(
            "champion and challenger were scored on different events",
            where=f"event_id {only_one[0]}",
            found=f"{len(only_one)} events in only one of {len(challenger)} and {len(champion)}",
            expected="the same test events",
            remedy="Evaluate both models on the same manifest and test split",
        )
    return "champion", _angles(champion, "opening")


def _by_event(events: pd.DataFrame, who: str) -> pd.DataFrame:
    if len(events) < 2 or events["event_id"].duplicated().any():
        raise EvaluationError(
            "events cannot be paired",
            where=who,
            found=f"{len(events)} rows, {events['event_id'].nunique()} events",
            expected="at least two events, each once",
            remedy="Evaluate both models on the same test events, more than one",
        )
    return events.set_index("event_id").sort_index()


def _angles(events: pd.DataFrame, method: str) -> Degrees:
    return events[f"{method}_angle_deg"].to_numpy(np.float64)


def _calibration(challenger: pd.DataFrame, champion: pd.DataFrame | None) -> Calibration:
    new = pit_of(challenger)
    if champion is None:
        return Calibration(_shares(new))
    old = pit_of(_by_event(champion, "champion"))
    loss, error = calibration_loss(new, old)
    return Calibration(_shares(new), _shares(old), loss, error)


def _shares(pit: np.ndarray[tuple[int], np.dtype[np.float64]]) -> str:
    shares = " / ".join(f"{100 * found.share:.1f}" for found in coverage(pit))
    return f"{shares} % (off by {100 * calibration_gap(pit):.1f} points on average)"


def _levels() -> str:
    return " / ".join(f"{100 * level:.0f}" for level in LEVELS)
