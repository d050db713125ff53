"""Baselines: what must be beaten, scored on the very same events."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from iceaggr.angles import best_constant_direction, opening_angle
from iceaggr.batches.event_batch import EventBatch
from iceaggr.config import EvaluationConfig
from iceaggr.evaluation.event_table import true_direction
from iceaggr.reconstruction import (
    FitResult,
    ensemble_fit,
    improved_line_fit,
    likelihood_fit,
    line_fit,
    tensor_of_inertia,
)

Fit = Callable[[EventBatch], FitResult]
"""A classical reconstruction; where the hits fix no direction it says so and gives a fallback."""

CLASSICAL_FITS: dict[str, Fit] = {
    "line_fit": line_fit,
    "improved_line_fit": improved_line_fit,
    "tensor_of_inertia": tensor_of_inertia,
    "ensemble_fit": ensemble_fit,
    "likelihood_fit": likelihood_fit,
}
"""The classical reconstructions by the names used in metrics."""

TITLES = {
    "model": "This model",
    "random": "Random direction",
    "constant": "Best constant direction",
    "line_fit": "Line fit",
    "improved_line_fit": "Improved line fit",
    "tensor_of_inertia": "Tensor of inertia",
    "ensemble_fit": "Hit cleaning, ensemble of fits",
    "likelihood_fit": "Pandel likelihood fit",
}
"""How each method is called in tables and figures, in their order."""


def chosen_fits(config: EvaluationConfig) -> dict[str, Fit]:
    """List the classical fits that the configuration asks for."""
    skipped = () if config.likelihood_fit else ("likelihood_fit",)
    return {name: fit for name, fit in CLASSICAL_FITS.items() if name not in skipped}


@dataclass
class BaselineTimer:
    """Runs the classical fits on minibatches; adds up their time and their failures."""

    fits: dict[str, Fit]
    seconds: dict[str, float] = field(default_factory=dict)
    n_failed: dict[str, int] = field(default_factory=dict)

    def angles_deg(self, batch: EventBatch) -> dict[str, npt.NDArray[np.float64]]:
        """Measure each fit's opening angles: name -> (B,) float64 degrees.

        Events that a fit cannot reconstruct keep its fallback direction and are counted.
        """
        return {name: self._angle_deg(name, fit, batch) for name, fit in self.fits.items()}

    def _angle_deg(self, name: str, fit: Fit, batch: EventBatch) -> npt.NDArray[np.float64]:
        started = time.perf_counter()
        with torch.inference_mode():
            result = fit(batch)
            direction = result.direction.to("cpu", torch.float64)
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started
        self.n_failed[name] = self.n_failed.get(name, 0) + result.n_failed
        direction = direction / torch.linalg.vector_norm(direction, dim=-1, keepdim=True)
        return torch.rad2deg(opening_angle(direction, true_direction(batch))).numpy()


def random_angles_deg(true: Tensor, seed: int) -> npt.NDArray[np.float64]:
    """Measure the angles of isotropic random directions.

    true: (N, 3) float64 unit vectors. Returns (N,) degrees, the same for the same seed.
    """
    generator = torch.Generator().manual_seed(seed)
    guess = torch.randn(true.shape, generator=generator, dtype=torch.float64)
    guess = guess / torch.linalg.vector_norm(guess, dim=-1, keepdim=True)
    return torch.rad2deg(opening_angle(guess, true)).numpy()


def constant_angles_deg(true: Tensor) -> npt.NDArray[np.float64]:
    """Measure the angles of the best constant direction: (N,) degrees.

    The direction is chosen on these same events, which favours the baseline.
    """
    best = best_constant_direction(true)
    return torch.rad2deg(opening_angle(best.expand_as(true), true)).numpy()
