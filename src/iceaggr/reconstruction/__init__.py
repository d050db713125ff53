"""Classical reconstruction: vectorised fits on an EventBatch, baselines and seeds."""

from __future__ import annotations

from collections.abc import Callable

from iceaggr.batches.event_batch import EventBatch
from iceaggr.reconstruction.fit_result import FitResult
from iceaggr.reconstruction.inertia import tensor_of_inertia
from iceaggr.reconstruction.line_fit import improved_line_fit, line_fit
from iceaggr.reconstruction.track_likelihood import likelihood_fit

SEED_FITS: dict[str, Callable[[EventBatch], FitResult]] = {
    "line_fit": line_fit,
    "improved": improved_line_fit,
    "likelihood": likelihood_fit,
}
"""The fits that a model can start from, by their name in the configuration."""

__all__ = [
    "SEED_FITS",
    "FitResult",
    "improved_line_fit",
    "likelihood_fit",
    "line_fit",
    "tensor_of_inertia",
]
