"""Normalisation: raw physical inputs become numbers near one, in one place.

The `Normalization` document says how, per feature; the `Normalizer` module carries it as buffers
inside the model, so that no path (chunked, exported, served) can forget it; `check_inputs` refuses
a batch that is badly scaled all the same.
"""

from iceaggr.normalization.checking import check_inputs
from iceaggr.normalization.document import (
    INPUT_FEATURES,
    POSITIONS,
    FeatureScaling,
    Normalization,
    parse_normalization,
)
from iceaggr.normalization.fitting import check_usable, fit_normalization
from iceaggr.normalization.normalizer import NormalizedInputs, Normalizer

__all__ = [
    "INPUT_FEATURES",
    "POSITIONS",
    "FeatureScaling",
    "Normalization",
    "NormalizedInputs",
    "Normalizer",
    "check_inputs",
    "check_usable",
    "fit_normalization",
    "parse_normalization",
]
