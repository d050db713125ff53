"""The head: event embedding to a vector whose direction and length are the prediction."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from iceaggr.models.direction_output import DirectionOutput

MAX_LENGTH = 12.0
"""Longest raw vector: kappa = sinh(12) = 81,000, a spread of 0.2 degrees."""


class DirectionHead(nn.Module):
    """Maps an embedding to a direction and a concentration, kappa = sinh(|raw vector|).

    sinh is the identity for the small concentrations of a beginner, and lets the large ones of
    clear tracks (10,000 and more) be reached from raw numbers near ten.
    """

    def __init__(self, width: int, start_at_seed: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.hidden = nn.Linear(width, width)
        self.out = nn.Linear(width, 3)
        if start_at_seed:
            with torch.no_grad():
                self.out.weight.mul_(0.1)
                self.out.bias.copy_(torch.tensor([0.0, 0.0, 1.0]))

    def forward(
        self, embedding: Tensor, vector: Tensor, rotation: Tensor | None = None
    ) -> DirectionOutput:
        """Predict.

        embedding: (B, C). vector: (B, 3), added to what the embedding says.
        rotation: (B, 3, 3), rows are the axes of the frame the prediction is made in, or None for
        the detector's own. Returns vectors in the detector's frame.
        """
        with torch.autocast(embedding.device.type, enabled=False):
            # sixteen bits would round the direction to 0.2 degrees
            embedding = embedding.float()
            raw = self.out(nn.functional.gelu(self.hidden(self.norm(embedding)))) + vector
            if rotation is not None:
                raw = (rotation * raw[:, :, None]).sum(1)
        length = (raw.square().sum(-1, keepdim=True) + 1e-12).sqrt()
        kappa = torch.sinh(length.clamp(max=MAX_LENGTH))
        seed = None if rotation is None else rotation[:, 2]
        return DirectionOutput(raw * (kappa / length), seed)
