"""Classical reconstruction: vectorised fits on an EventBatch, baselines and seeds."""

from iceaggr.reconstruction.fit_result import FitResult
from iceaggr.reconstruction.inertia import tensor_of_inertia
from iceaggr.reconstruction.line_fit import improved_line_fit, line_fit
from iceaggr.reconstruction.track_likelihood import likelihood_fit

__all__ = ["FitResult", "improved_line_fit", "likelihood_fit", "line_fit", "tensor_of_inertia"]
