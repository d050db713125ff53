"""Bootstrap intervals of the mean, quantiles and shares of opening angles, for any sample size."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from iceaggr.errors import EvaluationError

FloatArray = npt.NDArray[np.floating]

STATISTICS = ("mean", "median", "p68", "p90", "share_above_90")
"""What is reported about every sample of opening angles: degrees, the last one a share."""

QUANTILES = {"median": 0.5, "p68": 0.68, "p90": 0.9}
"""The quantile behind each quantile statistic."""

N_GROUPS = 256
"""Larger samples are resampled in this many groups of neighbours in sorted order."""


@dataclass(frozen=True)
class Estimate:
    """A statistic of a sample: its value, standard error and bootstrap interval."""

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
    Source: percentile bootstrap (Efron 1979), with the exact distribution of resampled order
    statistics: the r-th smallest of N uniform draws follows Beta(r, N - r + 1).
    """
    ordered = np.sort(_checked(angle_deg))
    n_values = len(ordered)
    estimates = {"mean": estimate_mean(ordered, n_bootstrap, confidence, rng)}
    for name, share in QUANTILES.items():
        rank = max(math.ceil(share * n_values), 1)
        draws = rng.beta(rank, n_values - rank + 1, n_bootstrap) * n_values
        resampled = ordered[np.minimum(draws.astype(np.int64), n_values - 1)]
        estimates[name] = _from_samples(float(np.quantile(ordered, share)), resampled, confidence)
    share_above = float((ordered > 90.0).mean())
    resampled = rng.binomial(n_values, share_above, n_bootstrap) / n_values
    estimates["share_above_90"] = _from_samples(share_above, resampled, confidence)
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


def _from_samples(value: float, samples: FloatArray, confidence: float) -> Estimate:
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(samples, [tail, 1.0 - tail])
    return Estimate(value, float(samples.std(ddof=1)), float(low), float(high))


def _without_error(value: float) -> Estimate:
    return Estimate(value, math.nan, math.nan, math.nan)


def _checked(values: FloatArray) -> FloatArray:
    values = np.asarray(values)
    if not len(values):
        raise EvaluationError("no event to score", expected="at least one")
    n_bad = int((~np.isfinite(values)).sum())
    if n_bad:
        raise EvaluationError(
            "opening angles are not finite",
            found=f"{n_bad} of {len(values)} values",
            expected="degrees",
            remedy="Look for NaN in the predictions",
        )
    return values
