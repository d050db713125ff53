"""Relative space-time bias: how two DOMs lie to each other tells whether one light links them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from iceaggr.models.fused_attention import ScoreChange
from iceaggr.models.packing import Chunk
from iceaggr.reconstruction.optics import C_M_PER_NS

DISTANCE_EDGES_M = (10.0, 30.0, 70.0, 140.0, 250.0, 450.0)
DELAY_EDGES_NS = (-1500.0, -500.0, -150.0, -40.0, 40.0, 150.0, 400.0, 1000.0, 3000.0)
N_DELAYS = len(DELAY_EDGES_NS) + 1
N_CELLS = (len(DISTANCE_EDGES_M) + 1) * N_DELAYS + 1
Rank = Callable[[Tensor, tuple[float, ...]], Tensor]
"""Values and sorted edges to the number of edges below each value."""
N_COPIES = 128
"""Copies of the table that a fused kernel reads: else all pairs would add to the same gradients,
one after the other."""


class RelativeBias(nn.Module):
    """Looks up a bias per head by distance and by delay |dt| - distance / c.

    A delay of zero: a muon may have passed both; positive: something slower than light in vacuum
    led from one to the other, such as scattered light; negative: nothing can have travelled from
    one to the other, though one source between them may have lit both. The event token, which lies
    nowhere, has a bias of its own.
    """

    def __init__(self, n_heads: int) -> None:
        super().__init__()
        self.table = nn.Embedding(N_CELLS, n_heads)
        nn.init.zeros_(self.table.weight)

    def forward(self, places: Tensor) -> BiasOfPlaces:
        """Prepare the biases between rows.

        places: (R, 4) float32, x, y, z in m and time in ns; NaN for a token.
        """
        return BiasOfPlaces(places, self.table.weight)


@dataclass(frozen=True)
class BiasOfPlaces:
    """The biases between rows that lie at known places.

    places: (R, 4) float32, x, y, z in m and time in ns; NaN for a token.  table: (cells, H)
    """

    places: Tensor
    table: Tensor

    def grouped(self, chunk: Chunk) -> list[Tensor]:
        """Write the bias out, one (n, H, L, L) per group."""
        return [self._of_group(group.pad(self.places)) for group in chunk.groups]

    def _of_group(self, places: Tensor) -> Tensor:
        one, other = places[:, :, None].unbind(-1), places[:, None, :].unbind(-1)
        cell = _cell(one, other, _rank)
        return nn.functional.embedding(cell, self.table).permute(0, 3, 1, 2)

    def change_score(self) -> ScoreChange:
        """Give the function that adds the bias inside a fused kernel."""
        x, y, z, t = (column.contiguous() for column in self.places.unbind(-1))
        tables = self.table.float().repeat(N_COPIES, 1)

        def add_bias(
            score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor
        ) -> Tensor:
            one = (x[query], y[query], z[query], t[query])
            cell = _cell(one, (x[key], y[key], z[key], t[key]), _rank_in_kernel)
            copy = (query * 37 + key) % N_COPIES
            return score + tables[copy * N_CELLS + cell, head]

        return add_bias


def _cell(one: Sequence[Tensor], other: Sequence[Tensor], rank: Rank) -> Tensor:
    """Find the row of the table for pairs of places x, y, z, t, each broadcast to the pairs."""
    dx, dy, dz, dt = (a - b for a, b in zip(one, other, strict=True))
    distance = (dx * dx + dy * dy + dz * dz).sqrt()
    delay = dt.abs() - distance / C_M_PER_NS
    cell = rank(distance, DISTANCE_EDGES_M) * N_DELAYS + rank(delay, DELAY_EDGES_NS)
    return torch.where(distance != distance, N_CELLS - 1, cell)


def _rank(values: Tensor, edges: tuple[float, ...]) -> Tensor:
    return torch.bucketize(values, values.new_tensor(edges))


def _rank_in_kernel(values: Tensor, edges: tuple[float, ...]) -> Tensor:
    """Count the edges below: the same as `_rank`, which does not exist inside a kernel."""
    n_below = (values > edges[0]).to(torch.int32)
    for edge in edges[1:]:
        n_below = n_below + (values > edge).to(torch.int32)
    return n_below
