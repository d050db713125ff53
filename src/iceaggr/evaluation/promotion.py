"""The promotion decision: champion against challenger on the same test events, with its reason."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from iceaggr.config import PromotionConfig
from iceaggr.errors import EvaluationError
from iceaggr.evaluation.calibration import calibration_gap, probability_inside


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


def decide_promotion(
    challenger: pd.DataFrame, champion: pd.DataFrame | None, config: PromotionConfig
) -> Verdict:
    """Decide whether a challenger becomes the champion.

    challenger, champion: event tables with event_id, opening_angle_deg, kappa; the challenger's
    also with constant_angle_deg, the rival while there is no champion. The challenger must win by
    more than min_sigma standard errors and by min_gain_deg, and against a champion must not be
    worse calibrated.
    Raises: EvaluationError if the two tables do not hold the same events, or fewer than two.
    """
    challenger = _by_event(challenger, "challenger")
    rival, rival_deg = _rival(challenger, champion)
    difference = rival_deg - challenger["opening_angle_deg"].to_numpy()
    margin = float(difference.mean())
    error = float(difference.std(ddof=1) / math.sqrt(len(difference)))
    measured = f"{abs(margin):.3f} ± {error:.3f} deg on {len(difference):,} paired test events"
    needed = f"required are {config.min_sigma:g} σ and {config.min_gain_deg:g} deg"
    if not (margin > config.min_sigma * error and margin >= config.min_gain_deg):
        direction = "better" if margin > 0 else "worse" if margin < 0 else "no different"
        promote, reason = False, f"{direction} than the {rival} by {measured}; {needed}"
        if margin == 0:
            reason = f"no different from the {rival} on {len(difference):,} paired test events"
    else:
        promote, reason = True, f"better than the {rival} by {measured}; {needed}"
    if promote and champion is not None:
        promote, reason = _check_calibration(challenger, champion, config, reason)
    sentence = f"{'promoted' if promote else 'not promoted'}: {reason}"
    return Verdict(promote, sentence, margin, error, len(difference), rival)


def _rival(
    challenger: pd.DataFrame, champion: pd.DataFrame | None
) -> tuple[str, np.ndarray[tuple[int], np.dtype[np.float64]]]:
    if champion is None:
        if "constant_angle_deg" not in challenger:
            raise EvaluationError(
                "the first champion has no rival",
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
        )
    return events.set_index("event_id").sort_index()


def _angles(events: pd.DataFrame, method: str) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return events[f"{method}_angle_deg"].to_numpy(np.float64)


def _check_calibration(
    challenger: pd.DataFrame, champion: pd.DataFrame, config: PromotionConfig, reason: str
) -> tuple[bool, str]:
    new, old = _gap(challenger), _gap(champion)
    if new > old + config.max_calibration_loss:
        return False, (
            f"calibration is worse (mean coverage error {new:.3f}, champion {old:.3f}, at most "
            f"{config.max_calibration_loss:g} more is allowed), though it is {reason}"
        )
    return True, f"{reason}, mean coverage error {new:.3f} against {old:.3f}"


def _gap(events: pd.DataFrame) -> float:
    angle_rad = np.deg2rad(events["opening_angle_deg"].to_numpy())
    return calibration_gap(probability_inside(angle_rad, events["kappa"].to_numpy()))
