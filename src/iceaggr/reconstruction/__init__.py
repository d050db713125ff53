"""Classical reconstruction: vectorised fits on an EventBatch, baselines and seeds."""

from iceaggr.reconstruction.likelihood import likelihood_fit
from iceaggr.reconstruction.line_fit import (
    FitResult,
    charge_weighted_line_fit,
    ensemble_fit,
    improved_line_fit,
    line_fit,
    tensor_of_inertia,
)

__all__ = [
    "FitResult",
    "charge_weighted_line_fit",
    "ensemble_fit",
    "improved_line_fit",
    "likelihood_fit",
    "line_fit",
    "tensor_of_inertia",
]
