"""Drift: how the features of a new data set differ from those of a previous one."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from iceaggr.normalization import INPUT_FEATURES, Normalization
from iceaggr.shards.binning import Floats
from iceaggr.shards.histograms import FeatureSketch
from iceaggr.shards.sketches import FEATURES, Sketch

MAX_SHIFT, MAX_STABILITY_INDEX, MAX_DISTANCE = 0.1, 0.1, 0.05
N_GROUPS = 10
MIN_EXPECTED_HITS = 20.0


@dataclass(frozen=True)
class DriftRow:
    """One feature, now against before; NaN where the two cannot be compared.

    shift: difference of the means in units of the feature's normalisation scale, or of its previous
    standard deviation where it is no model input.  std_ratio: now / before.
    stability_index: population stability index over tenths of the previous distribution.
    distance: Kolmogorov-Smirnov distance of the two histograms.
    flags: which of the three exceed both their limit and what chance alone can do.
    """

    name: str
    mean_before: float
    mean_now: float
    shift: float
    std_ratio: float
    stability_index: float
    distance: float
    flags: tuple[str, ...]


def drift_table(now: Sketch, before: Sketch, normalization: Normalization) -> list[DriftRow]:
    """Compare every feature of two sketches, of the same split of two data sets.

    A row is flagged where the shift exceeds 0.1, the stability index 0.1 or the distance 0.05, and
    also exceeds the fluctuation expected for the two numbers of events.
    Source: limits of the stability index as in credit scoring (0.1 watch, 0.25 act).
    """
    rows = []
    for name in FEATURES:
        if name == "log10_charge":
            continue  # compared as charge_pe, in the transform that the model uses
        sketched = normalization.sketched_feature(name) if name in INPUT_FEATURES else name
        scale = normalization.scaling(name).scale if name in INPUT_FEATURES else 0.0
        rows.append(_row(sketched, now.features[sketched], before.features[sketched], scale))
    return rows


def newly_silent_doms(now: Sketch, before: Sketch) -> list[int]:
    """List detector rows that were hit before and, against expectation, are never hit now.

    Expected hits are those before, scaled to the number of events now; at least 20 are asked for.
    Returns an empty list if the two belong to different detectors.
    """
    if len(now.dom_hits) != len(before.dom_hits) or not before.n_events:
        return []
    expected = before.dom_hits * (now.n_events / before.n_events)
    silent: list[int] = np.flatnonzero(
        (now.dom_hits == 0) & (expected >= MIN_EXPECTED_HITS)
    ).tolist()
    return silent


def stability_index(now: Floats, before: Floats) -> float:
    """Compute the population stability index, sum of (p - q) ln(p / q) over tenths of q.

    now, before: (K,) float64 weight per bin, same bins. Half an event is added to each group, so
    that an empty one counts as rare instead of impossible.
    """
    cumulative = np.cumsum(before) / before.sum()
    group = np.minimum((cumulative - before / before.sum() / 2) * N_GROUPS, N_GROUPS - 1).astype(
        int
    )
    p, q = (np.bincount(group, weights=w, minlength=N_GROUPS) for w in (now, before))
    used = (p > 0) | (q > 0)
    share_now, share_before = ((w[used] + 0.5) / (w[used] + 0.5).sum() for w in (p, q))
    return float(np.sum((share_now - share_before) * np.log(share_now / share_before)))


def _row(name: str, now: FeatureSketch, before: FeatureSketch, scale: float) -> DriftRow:
    if now.binning != before.binning or not now.n_values or not before.n_values:
        reason = "different bins" if now.binning != before.binning else "no values"
        nan = math.nan
        return DriftRow(name, before.mean, now.mean, nan, nan, nan, nan, (reason,))
    unit = scale or before.std or 1.0
    shift = (now.mean - before.mean) / unit
    index = stability_index(now.histogram, before.histogram)
    shares = [np.cumsum(f.histogram) / f.histogram.sum() for f in (now, before)]
    distance = float(np.abs(shares[0] - shares[1]).max())
    # an event is one independent draw at most, however many pulses it has
    chance = 1 / now.weight + 1 / before.weight
    limits = {
        "mean": (abs(shift), max(MAX_SHIFT, 4 * math.sqrt(chance) * before.std / unit)),
        "PSI": (index, max(MAX_STABILITY_INDEX, chance * _chi2_limit(N_GROUPS - 1))),
        "KS": (distance, max(MAX_DISTANCE, 1.95 * math.sqrt(chance))),
    }
    return DriftRow(
        name,
        before.mean,
        now.mean,
        shift,
        now.std / before.std if before.std else math.nan,
        index,
        distance,
        tuple(flag for flag, (value, limit) in limits.items() if value > limit),
    )


def _chi2_limit(degrees: int) -> float:
    """Bound a chi-square variable from above: its mean and four standard deviations."""
    return degrees + 4 * math.sqrt(2 * degrees)
