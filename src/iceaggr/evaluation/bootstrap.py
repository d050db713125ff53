"""Intervals of the mean, quantiles and shares of opening angles, for any sample size.

Means and quantiles are bootstrapped. A share is not: resampling 0 of 50 events gives 0 for ever,
and an interval from 0 to 0; Wilson's interval says how large the share may still be.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest

from iceaggr.errors import EvaluationError

FloatArray = npt.NDArray[np.floating]

STATISTICS = ("mean", "median", "p68", "p90", "share_above_90")
"""What is reported about every sample of opening angles: degrees, the last one a share."""

QUANTILES = {"median": 0.5, "p68": 0.68, "p90": 0.9}
"""The quantile behind each quantile statistic."""

ONE_SIGMA = 0.6827
"""Confidence of the interval whose half width is given as the error of a share."""

N_GROUPS = 256
"""Larger samples are resampled in this many groups of neighbours in sorted order."""


@dataclass(frozen=True)
class Estimate:
    """A statistic of a sample: its value, standard error and interval."""

    value: float
    error: float
    low: float
    high: float


def estimate_angles(
    angle_deg: FloatArray, n_bootstrap: int, confidence: float, rng: np.random.Generator
) -> dict[str, Estimate]:
    """Estimate every one of STATISTICS with its error.

    angle_deg: (N,) float, degrees, N >= 1. With N = 1 all errors are NaN.
    Raises: EvaluationError if a value is not finite or there is none.
    Source: percentile bootstrap (Efron 1979); of the share as `estimate_share`.
    """
    ordered = np.sort(_checked(angle_deg))
    n_values = len(ordered)
    estimates = {"mean": estimate_mean(ordered, n_bootstrap, confidence, rng)}
    for name, share in QUANTILES.items():
        resampled = _resampled_quantile(ordered, share, n_bootstrap, rng)
        estimates[name] = _from_samples(float(np.quantile(ordered, share)), resampled, confidence)
    estimates["share_above_90"] = estimate_share(int((ordered > 90.0).sum()), n_values, confidence)
    if n_values == 1:
        return {name: _without_error(found.value) for name, found in estimates.items()}
    return estimates


def estimate_mean(
    values: FloatArray, n_bootstrap: int, confidence: float, rng: np.random.Generator
) -> Estimate:
    """Estimate a mean: standard error from the sample, interval from the bootstrap.

    values: (N,) float, any unit. Groups of neighbours in sorted order act as one value when
    N > N_GROUPS: the variance inside a group is a hundred-thousandth of the whole.
    Raises: EvaluationError if a value is not finite or there is none.
    """
    ordered = np.sort(_checked(values)).astype(np.float64)
    n_values = len(ordered)
    if n_values == 1:
        return _without_error(float(ordered[0]))
    starts = np.unique(np.linspace(0, n_values, min(n_values, N_GROUPS) + 1).astype(np.int64))
    sizes = np.diff(starts)
    group_means = np.add.reduceat(ordered, starts[:-1]) / sizes
    counts = rng.multinomial(n_values, sizes / n_values, size=n_bootstrap)
    found = _from_samples(float(ordered.mean()), counts @ group_means / n_values, confidence)
    error = float(ordered.std(ddof=1) / math.sqrt(n_values))
    return Estimate(found.value, error, found.low, found.high)


def estimate_median(
    values: FloatArray, n_bootstrap: int, confidence: float, rng: np.random.Generator
) -> Estimate:
    """Estimate a median with the bootstrap.

    values: (N,) float, any unit, N >= 1. With N = 1 the error is NaN.
    Raises: EvaluationError if a value is not finite or there is none.
    """
    ordered = np.sort(_checked(values)).astype(np.float64)
    if len(ordered) == 1:
        return _without_error(float(ordered[0]))
    resampled = _resampled_quantile(ordered, 0.5, n_bootstrap, rng)
    return _from_samples(float(np.median(ordered)), resampled, confidence)


def estimate_share(n_inside: int, n_values: int, confidence: float) -> Estimate:
    """Estimate a share, also where none or all are inside.

    The error is half the width of the interval at ONE_SIGMA: never 0, and the binomial standard
    error for large samples.
    Raises: EvaluationError if there is no value.
    Source: Wilson 1927, the score interval of a binomial proportion.
    """
    if not n_values:
        raise _nothing_to_score()
    test = binomtest(n_inside, n_values)
    wide = test.proportion_ci(confidence, method="wilson")
    narrow = test.proportion_ci(ONE_SIGMA, method="wilson")
    error = float(narrow.high - narrow.low) / 2.0
    return Estimate(n_inside / n_values, error, float(wide.low), float(wide.high))


def _resampled_quantile(
    ordered: FloatArray, share: float, n_bootstrap: int, rng: np.random.Generator
) -> FloatArray:
    """Draw the quantile of n_bootstrap resampled samples.

    Source: the r-th smallest of N uniform draws follows Beta(r, N - r + 1), which is the exact
    distribution of resampled order statistics.
    """
    n_values = len(ordered)
    rank = max(math.ceil(share * n_values), 1)
    draws = rng.beta(rank, n_values - rank + 1, n_bootstrap) * n_values
    return ordered[np.minimum(draws.astype(np.int64), n_values - 1)]


def _from_samples(value: float, samples: FloatArray, confidence: float) -> Estimate:
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(samples, [tail, 1.0 - tail])
    return Estimate(value, float(samples.std(ddof=1)), float(low), float(high))


def _without_error(value: float) -> Estimate:
    return Estimate(value, math.nan, math.nan, math.nan)


def _checked(values: FloatArray) -> FloatArray:
    values = np.asarray(values)
    if not len(values):
        raise _nothing_to_score()
    n_bad = int((~np.isfinite(values)).sum())
    if n_bad:
        raise EvaluationError(
            "opening angles are not finite",
            where="opening angles",
            found=f"{n_bad} of {len(values)} values",
            expected="degrees",
            remedy="Look for NaN in the predictions",
        )
    return values


def _nothing_to_score() -> EvaluationError:
    return EvaluationError(
        "no event to score",
        where="opening angles",
        found="none",
        expected="at least one",
        remedy="Score more events, or leave this subset out",
    )
