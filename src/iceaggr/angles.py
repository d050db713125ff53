"""Directions: zenith and azimuth, unit vectors and opening angles.

The only direction trigonometry of the project. A direction is a unit vector that points to where
the neutrino came from; the particle travels the other way. x = cos(azimuth) sin(zenith),
y = sin(azimuth) sin(zenith), z = cos(zenith), with z up.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


def unit_vector(azimuth: Tensor, zenith: Tensor) -> Tensor:
    """Convert angles to unit vectors.

    azimuth, zenith: (...) float, radians. Returns (..., 3) in the dtype of the input.
    Raises: ValueError if the shapes differ.
    """
    if azimuth.shape != zenith.shape:
        raise ValueError(f"azimuth has shape {tuple(azimuth.shape)}, zenith {tuple(zenith.shape)}")
    sin_zenith = torch.sin(zenith)
    return torch.stack(
        [torch.cos(azimuth) * sin_zenith, torch.sin(azimuth) * sin_zenith, torch.cos(zenith)],
        dim=-1,
    )


def azimuth_zenith(direction: Tensor) -> tuple[Tensor, Tensor]:
    """Convert vectors of any positive length to angles.

    direction: (..., 3) float. Returns azimuth in [0, 2 pi) and zenith in [0, pi], (...) radians.
    The zenith uses atan2, which keeps full precision near the poles where acos loses half of it.
    Raises: ValueError if the last axis is not 3.
    """
    if direction.shape[-1] != 3:
        raise ValueError(f"direction has shape {tuple(direction.shape)}, expected (..., 3)")
    x, y, z = direction.unbind(-1)
    azimuth = torch.remainder(torch.atan2(y, x), 2 * math.pi)
    # remainder of a tiny negative angle rounds up to 2 pi itself, which is outside [0, 2 pi)
    azimuth = torch.where(azimuth >= 2 * math.pi, torch.zeros_like(azimuth), azimuth)
    return azimuth, torch.atan2(torch.hypot(x, y), z)


def opening_angle(predicted: Tensor, true: Tensor) -> Tensor:
    """Measure the angle between unit vectors, stable near 0 and pi.

    predicted, true: (B, 3) float, unit norm. Returns (B,) radians in [0, pi].
    Raises: ValueError if the shapes differ.
    Source: W. Kahan, "How futile are mindless assessments of roundoff", 2006, section 12.
    """
    if predicted.shape != true.shape:
        raise ValueError(f"predicted has shape {tuple(predicted.shape)}, true {tuple(true.shape)}")
    # 2 atan2(|a-b|, |a+b|): the sum and difference of unit vectors are exact where it matters
    difference = torch.linalg.vector_norm(predicted - true, dim=-1)
    total = torch.linalg.vector_norm(predicted + true, dim=-1)
    return 2 * torch.atan2(difference, total)


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


def mean_cosine(kappa: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Compute the mean cosine of the angle to the mean direction: (N,) in [0, 1).

    kappa: (N,) concentration >= 0. It is the length of the mean vector as well.
    Source: coth(kappa) - 1 / kappa, of the von Mises-Fisher density on the sphere.
    """
    kappa = np.asarray(kappa, np.float64)
    safe = np.maximum(kappa, 1e-3)
    # the formula loses its digits towards 0
    return np.where(kappa < 1e-3, kappa / 3, 1 / np.tanh(safe) - 1 / safe)


SILENT = 1e-4
"""A kappa below it says nothing; the formulas lose their digits there."""


def kappa_of_mean_cosine(
    length: npt.NDArray[np.floating],
) -> npt.NDArray[np.float64]:
    """Invert `mean_cosine`: (N,) lengths of mean vectors to kappa, at least SILENT.

    Source: Banerjee et al. 2005, then Newton's method.
    """
    r = np.clip(length, SILENT / 3, 0.99)
    kappa = r * (3 - r**2) / (1 - r**2)
    for _ in range(3):
        found = mean_cosine(kappa)
        kappa = np.maximum(kappa - (found - r) / (1 - found**2 - 2 * found / kappa), SILENT)
    # above, the hyperbolic cotangent is 1 to the last digit
    return np.where(length > 0.99, 1 / (1 - np.minimum(length, 1 - 1e-12)), kappa)


def sphere_density(
    kappa: npt.NDArray[np.floating], cosine: npt.NDArray[np.floating]
) -> npt.NDArray[np.float64]:
    """Compute the von Mises-Fisher density per steradian at an angle from its mean: (N,).

    kappa: (N,) concentration.  cosine: (N,) of the angle.  Source: Fisher 1953.
    """
    kappa = np.maximum(kappa, SILENT)
    return kappa * np.exp(-kappa * (1 - cosine)) / (-2 * np.pi * np.expm1(-2 * kappa))
