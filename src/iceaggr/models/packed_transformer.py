"""A pre-norm transformer over packed segments: no padding in any linear layer."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from iceaggr.config import ModelConfig
from iceaggr.models.dropout import Dropout
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
        hidden = self.dropout(functional.gelu(self.feedforward_in(self.feedforward_norm(x))))
        return x + self.dropout(self.feedforward_out(hidden))


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


def run_chunks(packing: Packing, run: Callable[[Chunk], Tensor]) -> Tensor:
    """Compute every chunk and join the results, one row per segment, in the original order.

    Activations of all chunks but the last are recomputed in the backward pass, so that memory is
    bounded by two chunks, however large the batch or its largest event.
    """
    *earlier, last = packing.chunks
    if torch.is_grad_enabled():
        parts = [checkpoint(run, chunk, use_reentrant=False) for chunk in earlier]
    else:
        parts = [run(chunk) for chunk in earlier]
    parts.append(run(last))
    return packing.restore(parts[0] if len(parts) == 1 else torch.cat(parts))
