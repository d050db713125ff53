"""Relative space-time bias: how two DOMs lie to each other tells whether one light links them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from iceaggr.models.packing import Chunk
from iceaggr.reconstruction.optics import C_M_PER_NS

DISTANCE_EDGES_M = (10.0, 30.0, 70.0, 140.0, 250.0, 450.0)
DELAY_EDGES_NS = (-1500.0, -500.0, -150.0, -40.0, 40.0, 150.0, 400.0, 1000.0, 3000.0)


class RelativeBias(nn.Module):
    """Looks up a bias per head by distance and by delay |dt| - distance / c.

    A delay of zero: both lie on one muon's way; positive: slower than light, so one source may
    have lit both; negative: too close in time for a common cause to have travelled. The event
    token, which lies nowhere, has a bias of its own.
    """

    def __init__(self, n_heads: int) -> None:
        super().__init__()
        self.register_buffer("distance_edges", torch.tensor(DISTANCE_EDGES_M), persistent=False)
        self.register_buffer("delay_edges", torch.tensor(DELAY_EDGES_NS), persistent=False)
        self.n_delays = len(DELAY_EDGES_NS) + 1
        n_cells = (len(DISTANCE_EDGES_M) + 1) * self.n_delays + 1
        self.table = nn.Embedding(n_cells, n_heads)
        nn.init.zeros_(self.table.weight)

    distance_edges: Tensor
    delay_edges: Tensor

    def forward(self, places: Tensor, chunk: Chunk) -> list[Tensor]:
        """Give one (n, H, L, L) bias per group of the chunk.

        places: (R, 4) float32, x, y, z in m and time in ns; NaN for a token.
        """
        return [self._group_bias(group.pad(places)) for group in chunk.groups]

    def _group_bias(self, places: Tensor) -> Tensor:
        xyz, time = places[..., :3], places[..., 3]
        distance = (xyz[:, :, None] - xyz[:, None, :]).square().sum(-1).sqrt()
        delay = (time[:, :, None] - time[:, None, :]).abs() - distance / C_M_PER_NS
        is_nowhere = torch.isnan(distance)
        cell = torch.bucketize(distance.nan_to_num(), self.distance_edges) * self.n_delays
        cell = cell + torch.bucketize(delay.nan_to_num(), self.delay_edges)
        cell = torch.where(is_nowhere, self.table.num_embeddings - 1, cell)
        return self.table(cell).permute(0, 3, 1, 2)
