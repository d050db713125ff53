"""The event transformer: the DOMs of one event to one embedding."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from iceaggr.config import ModelConfig
from iceaggr.models.packed_transformer import PackedLayer, run_chunks
from iceaggr.models.packing import Chunk, pack
from iceaggr.models.relative_bias import RelativeBias
from iceaggr.reconstruction.segments import segment_mean


class EventTransformer(nn.Module):
    """Transforms the DOMs of each event together, and reads out their mean or an event token."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.max_rows = config.max_rows_per_chunk
        self.has_token = config.event_token
        self.layers = nn.ModuleList(PackedLayer(config) for _ in range(config.n_event_layers))
        self.norm = nn.LayerNorm(config.d_model)
        self.bias = RelativeBias(config.n_heads) if config.relative_bias else None

    def forward(
        self, doms: Tensor, token: Tensor | None, places: Tensor, event_dom_offsets: Tensor
    ) -> Tensor:
        """Embed events.

        doms: (D, C), DOM embeddings that know their position. token: (B, C), one event token
        each, or None. places: (D, 4) float32, x, y, z in m and first time in ns, for the relative
        bias. event_dom_offsets: (B+1,) int64. Returns (B, C).
        """
        if token is not None:
            doms, places, event_dom_offsets = _put_first(doms, token, places, event_dom_offsets)

        def run(chunk: Chunk) -> Tensor:
            x = doms.index_select(0, chunk.rows)
            biases = None if self.bias is None else self.bias(places[chunk.rows], chunk)
            for layer in self.layers:
                x = layer(x, chunk, biases)
            x = self.norm(x)
            if token is None:
                return segment_mean(x, chunk.segment, chunk.n_segments)
            is_token = torch.ones_like(chunk.segment, dtype=torch.bool)
            is_token[1:] = chunk.segment[1:] != chunk.segment[:-1]
            return x[is_token]

        return run_chunks(pack(event_dom_offsets, self.max_rows), run)


def _put_first(
    doms: Tensor, token: Tensor, places: Tensor, offsets: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Put one token before the DOMs of each event; a token's place is not a number."""
    n_events = len(token)
    event = torch.arange(n_events, device=offsets.device)
    new_offsets = offsets + torch.arange(n_events + 1, device=offsets.device)
    is_dom = torch.ones(len(doms) + n_events, dtype=torch.bool, device=doms.device)
    is_dom[new_offsets[:-1]] = False
    source = torch.empty(len(doms) + n_events, dtype=torch.int64, device=doms.device)
    source[is_dom] = torch.arange(len(doms), device=doms.device)
    source[~is_dom] = len(doms) + event
    nowhere = places.new_full((n_events, places.shape[1]), torch.nan)
    return (
        torch.cat([doms, token.to(doms.dtype)]).index_select(0, source),
        torch.cat([places, nowhere])[source],
        new_offsets,
    )
