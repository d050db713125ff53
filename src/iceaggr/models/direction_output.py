"""DirectionOutput: what a model predicts for each event."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_SHORTEST = 1e-12


@dataclass(frozen=True)
class DirectionOutput:
    """One vector per event: it points to the origin and is as long as the concentration kappa.

    vector: (B, 3) float32
    seed: (B, 3) float32, unit vectors of the classical fit that the prediction started from, or
        None if it started from none
    """

    vector: Tensor
    seed: Tensor | None = None

    @property
    def direction(self) -> Tensor:
        """Give unit vectors, (B, 3): straight up for one of length zero, NaN if not finite."""
        length = torch.linalg.vector_norm(self.vector.double(), dim=-1, keepdim=True)
        up = torch.zeros_like(self.vector).double()
        up[..., 2] = 1
        unit = self.vector.double() / length.clamp_min(_SHORTEST)
        # asked this way round NaN, which is neither longer nor shorter, stays what it is
        return torch.where(length <= _SHORTEST, up, unit).to(self.vector.dtype)

    @property
    def kappa(self) -> Tensor:
        """Give the von Mises-Fisher concentration, (B,)."""
        return torch.linalg.vector_norm(self.vector, dim=-1)
