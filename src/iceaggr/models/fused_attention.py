"""Fused attention within segments: one kernel for all of them, without padding or written masks.

Rows lie in one long sequence. Blocks of it that share a segment are attended, all others are
never computed, and inside a block rows of other segments are masked on the fly.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from iceaggr.models.packing import Chunk

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
