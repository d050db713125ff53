"""Fourier encoding: a coordinate as sines and cosines of many wavelengths."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class FourierEncoding(nn.Module):
    """Encodes coordinates at wavelengths spaced evenly in their logarithm.

    17 m of light path are 77 ns: a network that sees microseconds in one number does not resolve
    it. The phases are computed in float32, before any cast to a shorter type.
    """

    wave_numbers: Tensor

    def __init__(self, shortest: float, longest: float, n_bands: int) -> None:
        super().__init__()
        exponents = torch.linspace(0, 1, n_bands, dtype=torch.float64)
        wavelengths = longest * (shortest / longest) ** exponents
        numbers = (2 * math.pi / wavelengths).float()
        self.register_buffer("wave_numbers", numbers, persistent=False)

    def width(self, n_coordinates: int) -> int:
        """Count the columns made from n_coordinates."""
        return 2 * n_coordinates * self.wave_numbers.shape[0]

    def forward(self, coordinates: Tensor) -> Tensor:
        """Encode coordinates (R, K) in the unit of the wavelengths into (R, 2 K bands)."""
        phase = (coordinates.float()[..., None] * self.wave_numbers).flatten(1)
        return torch.cat([phase.sin(), phase.cos()], dim=-1)
