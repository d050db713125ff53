"""A pre-norm transformer over packed segments: no padding in any linear layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.utils.checkpoint import checkpoint

from iceaggr.config import ModelConfig
from iceaggr.detector import C_M_PER_NS
from iceaggr.models.lean_layers import Dropout, normed_feedforward, normed_linear, runs_lean
from iceaggr.models.packing import Chunk, Group, Packing, RowLimits, pack, pack_in_order

# Fused attention within segments: one kernel for all of them, without padding or written masks.
#
# Rows lie in one long sequence. Blocks of it that share a segment are attended, all others are
# never computed, and inside a block rows of other segments are masked on the fly.

BLOCK_ROWS = 128
"""Rows of a block, as wide as the kernels' tiles."""
MIN_HEAD_WIDTH = 16
"""Narrower heads have no kernel on a GPU. Source: flex_attention in the inductor of torch."""

ScoreChange = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""(score, batch, head, query row, key row) to the changed score."""


def same_segment_mask(chunk: Chunk) -> BlockMask:
    """List the blocks of rows that share a segment; nothing waits for the device.

    Raises: ValueError for a chunk that was packed for grouped attention.
    """
    if chunk.groups:
        raise ValueError("a chunk packed into groups, expected one packed in order")
    segment, offsets = chunk.segment, chunk.offsets
    n_rows = len(segment)
    # at least two: a dimension of one would be compiled apart
    n_blocks = max(2, -(-n_rows // BLOCK_ROWS))
    block = torch.arange(n_blocks, device=segment.device)
    first_row = (block * BLOCK_ROWS).clamp(max=n_rows - 1)
    last_row = (first_row + BLOCK_ROWS - 1).clamp(max=n_rows - 1)
    first = offsets[:-1][segment[first_row]] // BLOCK_ROWS
    last = (offsets[1:][segment[last_row]] - 1) // BLOCK_ROWS
    n_columns = torch.where(block * BLOCK_ROWS < n_rows, last - first + 1, 0)
    columns = (first[:, None] + block).clamp(max=n_blocks - 1)

    def same_segment(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return segment[query] == segment[key]

    return BlockMask.from_kv_blocks(
        n_columns.int()[None, None],
        columns.int()[None, None],
        BLOCK_SIZE=BLOCK_ROWS,
        mask_mod=same_segment,
        seq_lengths=(n_rows, n_rows),
    )


def attend_fused(
    packed: Tensor, n_heads: int, mask: BlockMask, change_score: ScoreChange | None
) -> Tensor:
    """Attend within all segments of a chunk: (R, 3C), queries, keys and values, to (R, C)."""
    n_rows, width = packed.shape[0], packed.shape[1] // 3
    shaped = packed.view(n_rows, 3, n_heads, width // n_heads)
    query, key, value = (part.transpose(0, 1)[None] for part in shaped.unbind(1))
    out = flex_attention(query, key, value, score_mod=change_score, block_mask=mask)
    assert isinstance(out, Tensor), "no auxiliary output was asked for"
    return out[0].transpose(0, 1).reshape(n_rows, width)


MAX_TRACES = 128
"""Traces of the layer in one process, four per network; torch gives up after 8 by itself."""

Attend = Callable[[Tensor, int], Tensor]
"""Queries, keys and values (R, 3C) and the number of heads to attended rows (R, C)."""
FusedLayer = Callable[["PackedLayer", Tensor, BlockMask, ScoreChange | None], Tensor]


class PackedLayer(nn.Module):
    """One layer: attention within each segment, then a feed-forward network.

    Dropout acts on the feed-forward network and on both residual branches. Attention weights are
    not dropped: fused attention would have to write them out.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.d_model
        self.n_heads = config.n_heads
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.feedforward_norm = nn.LayerNorm(width)
        self.feedforward_in = nn.Linear(width, config.feedforward_factor * width)
        self.feedforward_out = nn.Linear(config.feedforward_factor * width, width)
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor, attend: Attend) -> Tensor:
        """Transform packed rows, (R, C) to (R, C)."""
        attended = attend(self._queries_keys_values(x), self.n_heads)
        x = x + self.dropout(self.attention_out(attended))
        return x + self.dropout(self._feedforward(x))

    def _queries_keys_values(self, x: Tensor) -> Tensor:
        if self.training and runs_lean(x):
            return normed_linear(x, self.attention_norm, self.query_key_value)
        packed: Tensor = self.query_key_value(self.attention_norm(x))
        return packed

    def _feedforward(self, x: Tensor) -> Tensor:
        norm, into, out = self.feedforward_norm, self.feedforward_in, self.feedforward_out
        if self.training and runs_lean(x):
            return normed_feedforward(x, norm, into, out, self.dropout.share)
        hidden: Tensor = out(self.dropout(functional.gelu(into(norm(x)))))
        return hidden


class LayerStack(nn.ModuleList):
    """Layers that transform the rows of a chunk one after the other.

    On a GPU they can be compiled: one fused attention kernel for all segments, and few kernels for
    everything else. Compiled or not, they compute the same function.
    """

    def __init__(self, config: ModelConfig, n_layers: int) -> None:
        super().__init__(PackedLayer(config) for _ in range(n_layers))
        self.config = config
        self._compiled: FusedLayer | None = None

    def compile_layers(self, backend: str) -> None:
        """Attend fused from now on, compiled by one of torch's backends."""
        settings = torch._dynamo.config
        # numbers of rows differ from batch to batch; constants of the bias do not
        settings.specialize_float = True
        # one function is traced anew for each network, transformer, precision, and for evaluation
        settings.recompile_limit = max(settings.recompile_limit, MAX_TRACES)
        # whole or not at all: left uncompiled, it would write out the scores of all pairs of rows
        self._compiled = torch.compile(_fused_layer, backend=backend, fullgraph=True, dynamic=True)

    def packing(self, offsets: Tensor, n_rows: int) -> Packing:
        """Plan the chunks of segments. offsets: (S+1,) int64, of n_rows rows."""
        limits = RowLimits.of(self.config, offsets.device)
        if self._compiled is None:
            return pack(offsets, limits.per_chunk)
        return pack_in_order(offsets, n_rows, limits.per_chunk)

    def run_chunks(self, packing: Packing, run: Callable[[Chunk], Tensor]) -> Tensor:
        """Compute every chunk within the memory that suits the device; see `run_chunks`."""
        device = packing.chunks[0].segment.device
        return run_chunks(packing, run, RowLimits.of(self.config, device).kept)

    def transform(self, x: Tensor, chunk: Chunk, bias: PairBias | None = None) -> Tensor:
        """Transform the rows of a chunk, (R, C) to (R, C). bias: what is added to the logits."""
        # many small terms are added up: sixteen bits would lose those of the first layers
        x = x.float()
        if self._compiled is None:
            grouped = GroupedAttention(chunk.groups, None if bias is None else bias.grouped(chunk))
            for layer in self:
                x = layer(x, grouped)
            return x
        mask = same_segment_mask(chunk)
        change = None if bias is None else bias.change_score()
        for layer in self:
            assert isinstance(layer, PackedLayer)
            x = self._compiled(layer, x, mask, change)
        return x


class PairBias(Protocol):
    """What is added to the attention logits of pairs of rows of a chunk."""

    def grouped(self, chunk: Chunk) -> list[Tensor]:
        """Write the bias out, one (n, H, L, L) per group."""

    def change_score(self) -> ScoreChange:
        """Give the function that adds the bias inside a fused kernel."""


@dataclass(frozen=True)
class GroupedAttention:
    """Attends one group of segments after the other. biases: one (n, H, L, L) each, or None."""

    groups: tuple[Group, ...]
    biases: list[Tensor] | None

    def __call__(self, packed: Tensor, n_heads: int) -> Tensor:
        """Attend: (R, 3C), queries, keys and values, to (R, C)."""
        parts = [
            _attend(packed, group, n_heads, None if self.biases is None else self.biases[i])
            for i, group in enumerate(self.groups)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def _fused_layer(
    layer: PackedLayer, x: Tensor, mask: BlockMask, change_score: ScoreChange | None
) -> Tensor:
    def attend(packed: Tensor, n_heads: int) -> Tensor:
        return attend_fused(packed, n_heads, mask, change_score)

    out: Tensor = layer(x, attend)
    return out


def _attend(packed: Tensor, group: Group, n_heads: int, bias: Tensor | None) -> Tensor:
    """Attend within the segments of one group: (R, 3C) to (rows of the group, C)."""
    width = packed.shape[-1] // 3
    if group.length == 1:
        # a single key has weight one whatever its logit. The bias takes part all the same, so that
        # a batch of such events leaves no weight without a gradient: other processes wait for it
        value = packed[group.start : group.stop, 2 * width :]
        if bias is None:
            return value
        return value + 0.0 * bias.reshape(group.n, -1).sum(1)[:, None].to(value.dtype)
    shaped = group.pad(packed).view(group.n, group.length, 3, n_heads, width // n_heads)
    query, key, value = shaped.permute(2, 0, 3, 1, 4).unbind(0)
    mask = bias
    if group.is_real is not None:
        padding = group.is_real[:, None, None, :]
        mask = padding if bias is None else bias.masked_fill(~padding, -torch.inf)
    out = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return group.unpad(out.transpose(1, 2).reshape(group.n, group.length, width))


def run_chunks(packing: Packing, run: Callable[[Chunk], Tensor], max_rows_kept: int) -> Tensor:
    """Compute every chunk and join the results, one row per segment, in the original order.

    Activations of at most max_rows_kept rows, and always those of the last chunk, are kept; those
    of the other chunks are recomputed in the backward pass, so that memory is bounded by the rows
    kept and two chunks, however large the batch or its largest event.
    """
    sizes = [len(chunk.segment) for chunk in packing.chunks]
    rows_from_here = np.cumsum(sizes[::-1])[::-1]
    n_chunks = len(sizes)
    parts = [
        _run_recomputed(run, chunk)
        if torch.is_grad_enabled() and i < n_chunks - 1 and rows_from_here[i] > max_rows_kept
        else run(chunk)
        for i, chunk in enumerate(packing.chunks)
    ]
    return packing.restore(parts[0] if n_chunks == 1 else torch.cat(parts))


def _run_recomputed(run: Callable[[Chunk], Tensor], chunk: Chunk) -> Tensor:
    """Compute a chunk, and again going backward, with the same dropout."""

    def run_on_device(chunk: Chunk, _: Tensor) -> Tensor:
        return run(chunk)

    # torch brings back the random state of those devices only on which it is handed a tensor
    out: Tensor = checkpoint(run_on_device, chunk, chunk.segment, use_reentrant=False)
    return out


# Relative space-time bias: how two DOMs lie to each other tells whether one light links them.

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
