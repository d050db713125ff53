"""A pre-norm transformer over packed segments: no padding in any linear layer."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from iceaggr.config import ModelConfig
from iceaggr.models.dropout import Dropout
from iceaggr.models.feedforward import lean_feedforward, runs_lean
from iceaggr.models.packing import Chunk, Group, Packing


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

    def forward(self, x: Tensor, chunk: Chunk, biases: list[Tensor] | None = None) -> Tensor:
        """Transform packed rows.

        x: (R, C). biases: one (n, H, L, L) per group, added to the attention logits, or None.
        Returns (R, C).
        """
        packed = self.query_key_value(self.attention_norm(x))
        parts = [
            _attend(packed, group, self.n_heads, None if biases is None else biases[i])
            for i, group in enumerate(chunk.groups)
        ]
        attended = parts[0] if len(parts) == 1 else torch.cat(parts)
        x = x + self.dropout(self.attention_out(attended))
        return x + self.dropout(self._feedforward(self.feedforward_norm(x)))

    def _feedforward(self, x: Tensor) -> Tensor:
        if self.training and runs_lean(x):
            into, out = self.feedforward_in, self.feedforward_out
            return lean_feedforward(x, into, out, self.dropout.share)
        hidden = self.dropout(functional.gelu(self.feedforward_in(x)))
        return self.feedforward_out(hidden)


def _attend(packed: Tensor, group: Group, n_heads: int, bias: Tensor | None) -> Tensor:
    """Attend within the segments of one group: (R, 3C) to (rows of the group, C)."""
    width = packed.shape[-1] // 3
    if group.length == 1:
        # a single key has weight one whatever its logit
        return packed[group.start : group.stop, 2 * width :]
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
    sizes = [len(chunk.rows) for chunk in packing.chunks]
    rows_from_here = np.cumsum(sizes[::-1])[::-1]
    n_chunks = len(sizes)
    parts = [
        checkpoint(run, chunk, use_reentrant=False)
        if torch.is_grad_enabled() and i < n_chunks - 1 and rows_from_here[i] > max_rows_kept
        else run(chunk)
        for i, chunk in enumerate(packing.chunks)
    ]
    return packing.restore(parts[0] if n_chunks == 1 else torch.cat(parts))
