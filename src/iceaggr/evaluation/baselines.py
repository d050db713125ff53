"""Baselines: what must be beaten, scored on the very same events."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from iceaggr.angles import opening_angle
from iceaggr.batches.event_batch import EventBatch
from iceaggr.config import EvaluationConfig
from iceaggr.reconstruction import (
    FitResult,
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


def true_direction(batch: EventBatch) -> Tensor:
    """Give the labels as (B, 3) float64 unit vectors on the CPU."""
    assert batch.direction is not None, "only labelled events are scored"
    direction = batch.direction.to("cpu", torch.float64)
    return direction / torch.linalg.vector_norm(direction, dim=-1, keepdim=True)


def random_angles_deg(true: Tensor, seed: int) -> npt.NDArray[np.float64]:
    """Measure the angles of isotropic random directions.

    true: (N, 3) float64 unit vectors. Returns (N,) degrees, the same for the same seed.
    """
    generator = torch.Generator().manual_seed(seed)
    guess = torch.randn(true.shape, generator=generator, dtype=torch.float64)
    guess = guess / torch.linalg.vector_norm(guess, dim=-1, keepdim=True)
    return torch.rad2deg(opening_angle(guess, true)).numpy()


def best_constant_direction(true: Tensor, max_events: int = 20_000) -> Tensor:
    """Find the one direction with the smallest mean angle to all events.

    true: (N, 3) float64 unit vectors; of more than max_events an even sample is used.
    Returns (3,) float64. A search over the sphere in shrinking caps: the mean angle of nearly
    isotropic events is so flat that a search from one start would stay there.
    """
    sample = true[:: max(1, -(-len(true) // max_events))]
    best, cap = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64), 1.0
    for _ in range(6):
        candidates = torch.cat([best[None], _near(best, cap, 256)])
        cosine = (candidates @ sample.T).clamp(-1.0, 1.0)
        best = candidates[torch.acos(cosine).mean(dim=1).argmin()]
        cap /= 4.0
    return best


def constant_angles_deg(true: Tensor) -> npt.NDArray[np.float64]:
    """Measure the angles of the best constant direction: (N,) degrees.

    The direction is chosen on these same events, which favours the baseline.
    """
    best = best_constant_direction(true)
    return torch.rad2deg(opening_angle(best.expand_as(true), true)).numpy()


def _near(centre: Tensor, cap: float, n_points: int) -> Tensor:
    """Spread points evenly over the cap around a direction; cap = 1 is the whole sphere."""
    step = torch.arange(n_points, dtype=torch.float64) + 0.5
    cosine = 1.0 - 2.0 * cap * cap * step / n_points
    turn = step * torch.pi * (3.0 - 5.0**0.5)
    sine = torch.sqrt(1.0 - cosine**2)
    points = torch.stack([sine * torch.cos(turn), sine * torch.sin(turn), cosine], dim=1)
    # reflect the pole onto the centre: a Householder reflection keeps every angle
    axis = centre - torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    length = torch.linalg.vector_norm(axis)
    if length < 1e-12:
        return points
    axis = axis / length
    return points - 2.0 * (points @ axis)[:, None] * axis
