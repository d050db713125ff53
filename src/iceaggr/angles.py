"""Directions: zenith and azimuth, unit vectors and opening angles.

The only direction trigonometry of the project. A direction is a unit vector that points to where
the neutrino came from; the particle travels the other way. x = cos(azimuth) sin(zenith),
y = sin(azimuth) sin(zenith), z = cos(zenith), with z up.
"""

from __future__ import annotations

import math

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
