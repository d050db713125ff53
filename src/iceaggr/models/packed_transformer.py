"""A pre-norm transformer over packed segments: no padding in any linear layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention.flex_attention import BlockMask
from torch.utils.checkpoint import checkpoint

from iceaggr.config import ModelConfig
from iceaggr.models.dropout import Dropout
from iceaggr.models.fused_attention import ScoreChange, attend_fused, same_segment_mask
from iceaggr.models.lean_layers import normed_feedforward, normed_linear, runs_lean
from iceaggr.models.packing import Chunk, Group, Packing, RowLimits, pack, pack_in_order

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
