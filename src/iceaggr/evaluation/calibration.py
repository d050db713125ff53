"""Calibration of kappa: is the predicted von Mises-Fisher width the width of the errors?

Density of the opening angle psi: kappa / (1 - exp(-2 kappa)) exp(-kappa (1 - cos psi)) sin psi.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from iceaggr.angles import mean_cosine
from iceaggr.errors import EvaluationError

FloatArray = npt.NDArray[np.floating]

LEVELS = (0.5, 0.68, 0.9)
"""Nominal probabilities whose coverage is reported."""

RAYLEIGH_MEDIAN = math.sqrt(2.0 * math.log(2.0))
"""Median of the pull psi sqrt(kappa) of a calibrated model with narrow errors: 1.177."""


@dataclass(frozen=True)
class Coverage:
    """Share of events inside their own region of nominal probability `level`."""

    level: float
    share: float
    error: float


@dataclass(frozen=True)
class RiskCoverage:
    """Accuracy of the most confident events, sorted by kappa.

    kept_share: (K,) share of events kept; mean_deg, median_deg, p90_deg: (3, K) their angles: one
    standard error below, the value, one standard error above.
    """

    kept_share: FloatArray
    mean_deg: FloatArray
    median_deg: FloatArray
    p90_deg: FloatArray


@dataclass(frozen=True)
class WidthPart:
    """How wide the errors of some events are, and how wide their kappa says they are.

    claimed_deg, found_deg: root mean square of sin(psi / 2), which is what the likelihood teaches
    kappa whatever the shape of the errors, as the angle psi.  ratio: found over claimed width, 1
    where kappa is honest.  error: standard error of the ratio, NaN for one event
    """

    n_events: int
    kappa_low: float
    kappa_high: float
    claimed_deg: float
    found_deg: float
    ratio: float
    error: float


def probability_inside(angle_rad: FloatArray, kappa: FloatArray) -> FloatArray:
    """Compute the probability integral transform (PIT) of each event.

    angle_rad, kappa: (N,) opening angle in radians and concentration >= 0.
    Returns (N,) in [0, 1], uniform for a calibrated model.
    Raises: EvaluationError if the shapes differ or a kappa is negative or not finite.
    Source: integral of the von Mises-Fisher density from 0 to psi.
    """
    angle_rad, kappa = _checked(angle_rad, kappa)
    # 1 - cos(psi) = 2 sin^2(psi / 2) keeps its digits at small angles
    lost_cosine = 2.0 * np.sin(angle_rad / 2.0) ** 2
    with np.errstate(invalid="ignore", divide="ignore"):
        inside = np.expm1(-kappa * lost_cosine) / np.expm1(-2.0 * kappa)
    return np.where(kappa < 1e-9, lost_cosine / 2.0, inside)


def negative_log_likelihood(angle_rad: FloatArray, kappa: FloatArray) -> FloatArray:
    """Compute the negative log-likelihood of each event's true direction: (N,) nats.

    angle_rad, kappa: (N,) opening angle in radians and concentration >= 0. Whoever knows nothing,
    kappa 0, has ln(4 pi) = 2.53 for every event.
    Raises: EvaluationError if the shapes differ or a kappa is negative or not finite.
    Source: density kappa / (2 pi (1 - exp(-2 kappa))) exp(-kappa (1 - cos psi)).
    """
    angle_rad, kappa = _checked(angle_rad, kappa)
    kappa = np.maximum(kappa, 1e-9)
    log_norm = np.log(-np.expm1(-2.0 * kappa) / kappa) + math.log(2.0 * math.pi)
    return log_norm + kappa * 2.0 * np.sin(angle_rad / 2.0) ** 2


def containment_angle(kappa: FloatArray, level: float) -> FloatArray:
    """Find the radius of the region that holds an event with probability `level`.

    kappa: (N,) concentration >= 0; level in (0, 1). Returns (N,) radians in [0, pi].
    Source: inverse of `probability_inside`.
    """
    kappa = np.asarray(kappa, np.float64)
    safe = np.maximum(kappa, 1e-9)
    lost_cosine = -np.log1p(level * np.expm1(-2.0 * safe)) / safe
    return 2.0 * np.arcsin(np.sqrt(np.clip(lost_cosine / 2.0, 0.0, 1.0)))


def coverage(pit: FloatArray, levels: tuple[float, ...] = LEVELS) -> list[Coverage]:
    """Count the events inside their regions, with the binomial error at the nominal level."""
    n_events = len(pit)
    return [
        Coverage(level, float((pit <= level).mean()), math.sqrt(level * (1 - level) / n_events))
        for level in levels
    ]


def calibration_gap(pit: FloatArray) -> float:
    """Average the distance of the coverages from nominal over LEVELS; 0 is perfect."""
    return float(np.mean([abs(found.share - found.level) for found in coverage(pit)]))


def calibration_loss(new: FloatArray, old: FloatArray) -> tuple[float, float]:
    """Measure by how much the calibration gap of one model exceeds another's on the same events.

    new, old: (N,) `probability_inside` of the same events in the same order.
    Returns the difference of the gaps, positive if the new one is worse, and its standard error.
    Source: linear propagation; the gap is a mean over events of signed memberships.
    """
    per_event = _signed_memberships(new) - _signed_memberships(old)
    error = float(per_event.std(ddof=1)) / math.sqrt(len(per_event))
    return calibration_gap(new) - calibration_gap(old), error


def _signed_memberships(pit: FloatArray) -> FloatArray:
    inside = pit[:, None] <= np.array(LEVELS)
    return (inside * np.where(inside.mean(0) >= LEVELS, 1.0, -1.0)).mean(1)


def claimed_width(kappa: FloatArray) -> FloatArray:
    """Give the root mean square of sin(psi / 2) that each kappa claims: (N,), at most 0.71.

    kappa: (N,) concentration >= 0. Large kappa: 1 / sqrt(2 kappa); zero: sqrt(1 / 2).
    Source: 1 - cos psi = 2 sin^2(psi / 2), whose mean is 1 - `mean_cosine`.
    """
    return np.sqrt((1 - mean_cosine(kappa)) / 2)


def width_parts(angle_rad: FloatArray, kappa: FloatArray, n_parts: int = 10) -> list[WidthPart]:
    """Compare the width found with the width claimed, in equal parts of the events by kappa.

    angle_rad, kappa: (N,). Returns n_parts, the least sure one first; fewer where there are fewer
    events.
    Raises: EvaluationError if the shapes differ or a kappa is negative or not finite.
    """
    angle_rad, kappa = _checked(angle_rad, kappa)
    found, claimed = np.sin(angle_rad / 2) ** 2, claimed_width(kappa) ** 2
    parts = np.array_split(np.argsort(kappa, kind="stable"), min(n_parts, len(kappa)))
    return [_width_part(found[part], claimed[part], kappa[part]) for part in parts]


def _width_part(found: FloatArray, claimed: FloatArray, kappa: FloatArray) -> WidthPart:
    ratio = math.sqrt(found.mean() / claimed.mean())
    relative = found.std() / math.sqrt(len(found)) / max(float(found.mean()), 1e-300)
    return WidthPart(
        n_events=len(found),
        kappa_low=float(kappa.min()),
        kappa_high=float(kappa.max()),
        claimed_deg=math.degrees(2 * math.asin(math.sqrt(claimed.mean()))),
        found_deg=math.degrees(2 * math.asin(math.sqrt(found.mean()))),
        ratio=ratio,
        error=ratio * float(relative) / 2 if len(found) > 1 else math.nan,
    )


def expected_pull_density(kappa: FloatArray, edges: FloatArray) -> FloatArray:
    """Predict the density of pulls, were every kappa true: (K - 1,) in bins of edges (K,).

    kappa: (N,) concentration >= 0. Wide errors end at 180 degrees, so that only narrow ones follow
    the Rayleigh density x exp(-x^2 / 2).
    Source: mean over events of the von Mises-Fisher distribution function at psi = x / sqrt(kappa).
    """
    width = 1.0 / np.sqrt(np.maximum(kappa, 1e-9))
    below = [
        float(probability_inside(np.minimum(edge * width, np.pi), kappa).mean()) for edge in edges
    ]
    return np.diff(below) / np.diff(edges)


def pulls(angle_rad: FloatArray, kappa: FloatArray) -> FloatArray:
    """Divide each angle by its predicted width: psi sqrt(kappa), (N,), Rayleigh if calibrated."""
    angle_rad, kappa = _checked(angle_rad, kappa)
    return angle_rad * np.sqrt(kappa)


def risk_coverage(angle_deg: FloatArray, kappa: FloatArray, n_points: int = 40) -> RiskCoverage:
    """Measure the accuracy of the most confident events for growing kept shares.

    angle_deg, kappa: (N,). Returns curves of at most n_points, the last one with every event.
    Raises: EvaluationError if the shapes differ or a kappa is negative or not finite.
    """
    angle_deg, kappa = _checked(angle_deg, kappa)
    ordered = angle_deg[np.argsort(-kappa, kind="stable")]
    n_events = len(ordered)
    first = min(max(n_events // n_points, 10), n_events)
    kept = np.unique(np.linspace(first, n_events, n_points).astype(np.int64))
    mean = np.cumsum(ordered)[kept - 1] / kept
    spread = np.cumsum(ordered**2)[kept - 1] / kept - mean**2
    error = np.sqrt(np.maximum(spread, 0.0) / kept)
    return RiskCoverage(
        kept_share=kept / n_events,
        mean_deg=np.array([mean - error, mean, mean + error]),
        median_deg=np.array([quantile_band(ordered[:n], 0.5) for n in kept]).T,
        p90_deg=np.array([quantile_band(ordered[:n], 0.9) for n in kept]).T,
    )


def quantile_band(values: FloatArray, share: float) -> FloatArray:
    """Take a quantile and the values one standard error of its rank below and above it: (3,).

    Source: the rank of the quantile `share` has a standard deviation of sqrt(n share (1 - share)).
    """
    half = np.sqrt(share * (1 - share) / len(values))
    return np.quantile(values, np.clip([share - half, share, share + half], 0.0, 1.0))


def _checked(angle: FloatArray, kappa: FloatArray) -> tuple[FloatArray, FloatArray]:
    angle, kappa = np.asarray(angle, np.float64), np.asarray(kappa, np.float64)
    if angle.shape != kappa.shape:
        raise EvaluationError(
            "angles and kappa differ in shape",
            where="calibration",
            found=kappa.shape,
            expected=angle.shape,
            remedy="Give one kappa for each opening angle",
        )
    bad = ~np.isfinite(kappa) | (kappa < 0)
    if bad.any():
        raise EvaluationError(
            "kappa is not a concentration",
            where="calibration",
            found=f"{kappa[bad][0]} and {int(bad.sum()) - 1} more like it",
            expected="finite numbers >= 0",
            remedy="Check the model's direction head",
        )
    return angle, kappa
