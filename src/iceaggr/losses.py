"""Losses: the opening angle, and the von Mises-Fisher likelihood in closed form.

The network predicts a vector: its direction is the direction, its length the concentration kappa.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from iceaggr.config import LossConfig

_TINY = 1e-12

NATS_OF_IGNORANCE = math.log(4 * math.pi)
"""Negative log-likelihood, 2.53 nats, of whoever knows nothing: all directions alike, kappa 0."""
ANGLE_OF_IGNORANCE = math.pi / 2
"""Mean opening angle, in radians, of whoever knows nothing."""


class Prediction(Protocol):
    """What the losses need to know of a prediction: vector (B, 3) of length kappa."""

    @property
    def vector(self) -> Tensor:
        """Give the predicted vector, (B, 3)."""


def direction_loss(
    output: Prediction, true_direction: Tensor, config: LossConfig, progress: float = 0.0
) -> Tensor:
    """Score predictions by the configured loss at a point of the training.

    true_direction: (B, 3) unit vectors; progress: share of the training done, in [0, 1].
    Returns (B,) float32, radians or nats.
    Raises: ValueError if progress is outside [0, 1].
    """
    if not 0 <= progress <= 1:
        raise ValueError(f"progress is {progress}, expected a share in [0, 1]")
    if config.kind == "angle":
        return angle_loss(output.vector, true_direction)
    likelihood = von_mises_fisher_loss(output.vector, true_direction)
    if _is_likelihood_alone(config, progress):
        return likelihood
    return angle_loss(output.vector, true_direction) + config.likelihood_share * likelihood


def loss_of_ignorance(config: LossConfig, progress: float) -> float:
    """Give the mean loss of whoever knows nothing: radians or nats, as `direction_loss`.

    progress: share of the training done, in [0, 1].
    """
    if config.kind == "angle":
        return ANGLE_OF_IGNORANCE
    if _is_likelihood_alone(config, progress):
        return NATS_OF_IGNORANCE
    return ANGLE_OF_IGNORANCE + config.likelihood_share * NATS_OF_IGNORANCE


def trains_kappa(config: LossConfig, progress: float = 1.0) -> bool:
    """Tell whether the loss asks for a true kappa at this point; the angle alone does not."""
    if config.kind == "angle":
        return False
    return _is_likelihood_alone(config, progress) or config.likelihood_share > 0


def _is_likelihood_alone(config: LossConfig, progress: float) -> bool:
    return config.kind == "von_mises_fisher" or progress < config.angle_from_progress


def angle_loss(vector: Tensor, true_direction: Tensor) -> Tensor:
    """Measure the opening angle with a gradient that stays finite at 0 and pi.

    vector: (B, 3) of any length; true_direction: (B, 3) unit vectors. Returns (B,) radians.
    Source: W. Kahan 2006, angle = atan2(|a x b|, a.b), with |a x b| rounded off below 1e-6.
    """
    vector, true_direction = vector.double(), true_direction.double()
    unit = vector / (vector.square().sum(-1, keepdim=True) + _TINY).sqrt()
    cross = torch.linalg.cross(unit, true_direction, dim=-1)
    sine = (cross.square().sum(-1) + _TINY).sqrt()
    return torch.atan2(sine, (unit * true_direction).sum(-1)).float()


def von_mises_fisher_loss(vector: Tensor, true_direction: Tensor) -> Tensor:
    """Negative log-likelihood of a direction under the von Mises-Fisher distribution on the sphere.

    vector: (B, 3), length kappa; true_direction: (B, 3) unit vectors. Returns (B,) nats.
    Computed in float64, where the closed form and its gradient lose no digits that matter from
    kappa 1e-4 to 1e5; B is small, so this costs nothing.
    Source: density kappa / (2 pi (1 - exp(-2 kappa))) exp(-kappa (1 - cos psi)).
    """
    vector, true_direction = vector.double(), true_direction.double()
    kappa = (vector.square().sum(-1) + _TINY).sqrt()
    aligned = (vector * true_direction).sum(-1)
    log_norm = torch.log(-torch.expm1(-2 * kappa)) - torch.log(kappa) + math.log(2 * math.pi)
    return (log_norm + kappa - aligned).float()
