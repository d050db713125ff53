"""Fitting a normalisation to the statistics of the train split."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from iceaggr.errors import NormalizationError
from iceaggr.normalization.document import (
    INPUT_FEATURES,
    POSITIONS,
    FeatureScaling,
    Normalization,
)
from iceaggr.shards.histograms import FeatureSketch
from iceaggr.shards.sketches import Sketch

TAIL_SHARE, TAIL_REACH = 0.001, 6.0
"""The quantiles of this share lie within this many scales of the mean."""
LOG_REACH = 9.5
"""The extremes of log10 charge do, below the 10 beyond which a value counts as an outlier."""


def fit_normalization(sketch: Sketch, constant_features: Collection[str] = ()) -> Normalization:
    """Fit centre and scale to a sketch of the train split, each event counting equally.

    Time, log10 charge and sensor row: mean, and the standard deviation or, for a heavy tail, a
    scale that holds the tail (TAIL_REACH); log10 charge one that holds its extremes (LOG_REACH),
    because a bright event may fill a batch alone. x, y and z have their own means
    but one common scale, so that angles survive. The auxiliary flag becomes -1 or +1: a fitted
    scale would blow up the rarer value.
    constant_features: what this detector does not record; it becomes 0 with scale 1.
    Raises: NormalizationError naming every feature that is missing, not finite or constant.
    """
    check_usable(sketch, constant_features)
    charge, time, row = (sketch.features[f] for f in ("log10_charge", "time_ns", "sensor_idx"))
    spread = sum(sketch.features[axis].std ** 2 for axis in POSITIONS) / len(POSITIONS)
    common_scale = spread**0.5 or 1.0
    positions = {
        axis: FeatureScaling(centre=sketch.features[axis].mean, scale=common_scale)
        for axis in POSITIONS
    }
    flag = sketch.features["auxiliary"]
    return Normalization(
        preset="fitted",
        time_ns=_fit(time),
        charge_pe=_fit(charge, "log10"),
        auxiliary=_fit(flag) if flag.is_constant else FeatureScaling(centre=0.5, scale=0.5),
        sensor_idx=_fit(row),
        **positions,
    )


def _fit(
    feature: FeatureSketch, transform: Literal["identity", "log10"] = "identity"
) -> FeatureScaling:
    if feature.is_constant:
        return FeatureScaling(transform=transform, centre=feature.low)
    tails = (feature.quantile(1 - TAIL_SHARE), feature.quantile(TAIL_SHARE))
    scale = max(feature.std, *(abs(tail - feature.mean) / TAIL_REACH for tail in tails))
    if transform == "log10":
        ends = (feature.low, feature.high)
        scale = max(scale, *(abs(end - feature.mean) / LOG_REACH for end in ends))
    return FeatureScaling(transform=transform, centre=feature.mean, scale=scale)


def check_usable(sketch: Sketch, constant_features: Collection[str] = ()) -> None:
    """Refuse a sketch with an input feature that is missing, not finite or constant.

    Raises: NormalizationError naming each such feature with its figures.
    """
    unknown = sorted(set(constant_features) - set(INPUT_FEATURES))
    if unknown:
        raise NormalizationError(
            "unknown constant feature",
            where="normalization.constant_features",
            found=unknown,
            expected=f"some of {INPUT_FEATURES}",
            remedy="Correct the name",
        )
    problems = []
    for name in INPUT_FEATURES:
        feature = sketch.features["log10_charge" if name == "charge_pe" else name]
        if feature.n_not_finite:
            problem = f"{feature.n_not_finite} of {feature.n_values + feature.n_not_finite} values"
            problems.append(f"{name}: {problem} are not finite or have no logarithm")
        elif feature.n_values == 0:
            problems.append(f"{name}: no values")
        elif feature.is_constant and name not in constant_features:
            value = sketch.features[name].low  # of charge as it was, not its logarithm
            problems.append(f"{name}: all {feature.n_values} values are {value:g}")
    if problems:
        raise NormalizationError(
            "features cannot be normalised",
            where=f"statistics of {sketch.n_events} events",
            found="; ".join(problems),
            expected="finite values that vary",
            remedy="Mend the raw data, or name what the detector lacks in "
            "normalization.constant_features",
        )
