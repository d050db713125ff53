"""Whether events are like those that a model was trained on, by the model's own normalisation.

A fitted centre is the mean of the training data and a scale at least their standard deviation, so
that the document alone bounds where they lay, whatever their distribution.
"""

from __future__ import annotations

from iceaggr.errors import RawDataError
from iceaggr.normalization.document import Normalization
from iceaggr.shards.sketches import Sketch

JUDGED_FEATURES = ("time_ns", "charge_pe", "sensor_idx")
"""Positions follow from the sensor, and the auxiliary flag has two values only."""
MAX_SHIFT = 3.0
"""Scales from the centre to the median: beyond lay at most a tenth of the training data (on one
side; a hundredth if they were about normal), and half of these.
Source: Cantelli's inequality, 1 / (1 + 3^2)."""
MIN_SPREAD = 0.05
"""Standard deviation in scales. That of the training data was 0.19 at least, since a scale exceeds
it only to hold the tail beyond a share of 0.001 (`fitting.TAIL_SHARE`) within 6 scales."""


def refuse_unlike_training(sketch: Sketch, normalization: Normalization, where: str) -> None:
    """Stop where a feature lies beside the training data, or is all but constant and was not.

    The fixed constants of a preset say nothing of any training data: then nothing is judged.
    Raises: RawDataError naming feature, figures and bounds.
    """
    if normalization.preset != "fitted":
        return
    for name in JUDGED_FEATURES:
        scaling = normalization.scaling(name)
        feature = sketch.features[normalization.sketched_feature(name)]
        shift = (feature.quantile(0.5) - scaling.centre) / scaling.scale
        spread = feature.std / scaling.scale
        if abs(shift) > MAX_SHIFT:
            found = f"a median of {feature.quantile(0.5):.4g}, {shift:+.1f} scales from the centre"
        elif spread < MIN_SPREAD and scaling.scale != 1.0:  # 1 is that of a constant feature
            found = f"a spread (standard deviation) of {feature.std:.3g}, {spread:.2g} scales"
        else:
            continue
        shown = normalization.sketched_feature(name)
        raise RawDataError(
            "events are not like those that the model was trained on",
            where=f"{where} {shown}",
            found=found,
            expected=f"around {scaling.centre:.4g}, in scales of {scaling.scale:.3g}: a median"
            f" within {MAX_SHIFT:g}, a spread of at least {MIN_SPREAD:g}",
            remedy="Look at units and sensor ids of these events, or train a model on such events",
        )
