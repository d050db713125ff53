"""The promotion decision: champion against challenger on the same test events, with its reason."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from iceaggr.config import PromotionConfig
from iceaggr.errors import EvaluationError
from iceaggr.evaluation.calibration import (
    LEVELS,
    calibration_gap,
    calibration_loss,
    coverage,
    negative_log_likelihood,
)
from iceaggr.evaluation.event_table import pit_of
from iceaggr.losses import NATS_OF_IGNORANCE


@dataclass(frozen=True)
class Verdict:
    """Whether to promote, and why.

    margin_deg: mean of rival minus challenger opening angle on the same events, degrees, positive
    when the challenger is better; margin_error_deg: its standard error.
    """

    promote: bool
    reason: str
    margin_deg: float
    margin_error_deg: float
    n_events: int
    compared_with: str


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
    if not why:
        return verdict
    though = verdict.reason.removeprefix("promoted: ")
    return replace(verdict, promote=False, reason=f"not promoted: {why}; though {though}")


def decide_promotion(
    challenger: pd.DataFrame, champion: pd.DataFrame | None, config: PromotionConfig
) -> Verdict:
    """Decide whether a challenger becomes the champion.

    challenger, champion: event tables with event_id, opening_angle_deg, kappa; the challenger's
    also with constant_angle_deg, the rival while there is no champion. The challenger must win by
    more than min_sigma standard errors and by min_gain_deg, and against a champion must not be
    worse calibrated by more than max_calibration_loss.
    Raises: EvaluationError if the two tables do not hold the same events, or fewer than two.
    """
    challenger = _by_event(challenger, "challenger")
    rival, rival_deg = _rival(challenger, champion)
    difference = rival_deg - challenger["opening_angle_deg"].to_numpy()
    margin = float(difference.mean())
    error = float(difference.std(ddof=1) / math.sqrt(len(difference)))
    promote = margin > config.min_sigma * error and margin >= config.min_gain_deg
    needed = f"required are {config.min_sigma:g} σ and {config.min_gain_deg:g} deg"
    reason = f"{_compared(margin, error, len(difference), rival)}; {needed}"
    if promote and champion is not None:
        promote, reason = _check_calibration(challenger, champion, config, reason)
    elif promote:
        shares = _shares(pit_of(challenger))
        reason += f"; calibration: {shares} of events lie in their {_levels()} % regions"
    sentence = f"{'promoted' if promote else 'not promoted'}: {reason}"
    return Verdict(promote, sentence, margin, error, len(difference), rival)


def _compared(margin: float, error: float, n_events: int, rival: str) -> str:
    """Say what the difference is, and only what is beyond its error."""
    on_events = f"on {n_events:,} paired test events"
    if margin == 0 and error == 0:
        return f"no different from the {rival} {on_events}"
    if abs(margin) <= error:
        return f"cannot be told from the {rival} ({margin:.3f} ± {error:.3f} deg {on_events})"
    direction = "better" if margin > 0 else "worse"
    return f"{direction} than the {rival} by {abs(margin):.3f} ± {error:.3f} deg {on_events}"


def _rival(
    challenger: pd.DataFrame, champion: pd.DataFrame | None
) -> tuple[str, np.ndarray[tuple[int], np.dtype[np.float64]]]:
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


def _angles(events: pd.DataFrame, method: str) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return events[f"{method}_angle_deg"].to_numpy(np.float64)


def _check_calibration(
    challenger: pd.DataFrame, champion: pd.DataFrame, config: PromotionConfig, reason: str
) -> tuple[bool, str]:
    new = pit_of(challenger)
    old = pit_of(_by_event(champion, "champion"))
    loss, error = calibration_loss(new, old)
    by = f"by {100 * loss:.1f} ± {100 * error:.1f} points"
    allowed = f"the allowed {100 * config.max_calibration_loss:g}"
    measured = (
        f"{_shares(new)} of events lie in their {_levels()} % regions, of the champion's"
        f" {_shares(old)}"
    )
    if loss > config.max_calibration_loss:
        worse = "is worse" if loss > error else "may be worse"
        return False, f"calibration {worse} {by}, more than {allowed}: {measured}; though {reason}"
    if loss > error:
        return True, f"{reason}; calibration is worse {by}, within {allowed}: {measured}"
    if loss > 0:
        return True, f"{reason}; calibration is not worse beyond its error ({by}): {measured}"
    return True, f"{reason}; calibration is not worse: {measured}"


def _shares(pit: np.ndarray[tuple[int], np.dtype[np.float64]]) -> str:
    shares = " / ".join(f"{100 * found.share:.1f}" for found in coverage(pit))
    return f"{shares} % (off by {100 * calibration_gap(pit):.1f} points on average)"


def _levels() -> str:
    return " / ".join(f"{100 * level:.0f}" for level in LEVELS)
