"""The event transformer: the DOMs of one event to one embedding."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from iceaggr.batches.event_batch import segment_idx
from iceaggr.config import ModelConfig
from iceaggr.models.packed_transformer import LayerStack
from iceaggr.models.packing import Chunk
from iceaggr.models.relative_bias import RelativeBias
from iceaggr.models.seed_frame import N_VECTORS
from iceaggr.reconstruction.segments import segment_mean

VECTOR_GAIN = 5.0
"""Weights near one give vectors of the length that a prediction of some confidence has."""


@dataclass(frozen=True)
class DomInputs:
    """What the event transformer is told of each DOM.

    embedding: (D, C).  places: (D, 4) float32, x, y, z in m and first time in ns
    vectors: (D, V, 3) float32, vectors in the frame of the prediction; V may be 0
    """

    embedding: Tensor
    places: Tensor
    vectors: Tensor


class EventTransformer(nn.Module):
    """Transforms the DOMs of each event together, and reads out their mean or an event token.

    With a vector readout, each DOM also weighs its own vectors, and their mean is read out: the
    network then need not learn to multiply, only which DOMs point where the light came from.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.has_token = config.event_token
        self.layers = LayerStack(config, config.n_event_layers)
        self.norm = nn.LayerNorm(config.d_model)
        self.bias = RelativeBias(config.n_heads) if config.relative_bias else None
        self.vector_weights = (
            nn.Linear(config.d_model, N_VECTORS) if config.vector_readout else None
        )
        if self.vector_weights is not None:
            # the prediction starts at the seed, undisturbed
            nn.init.zeros_(self.vector_weights.weight)
            nn.init.zeros_(self.vector_weights.bias)

    def forward(
        self, doms: DomInputs, token: Tensor | None, event_dom_offsets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Embed events.

        token: (B, C), one event token each, or None. event_dom_offsets: (B+1,) int64.
        Returns embeddings (B, C), and the weighted mean of the DOMs' vectors (B, 3), which is 0
        without a vector readout.
        """
        if token is not None:
            doms, event_dom_offsets = _put_first(doms, token, event_dom_offsets)

        def run(chunk: Chunk) -> Tensor:
            bias = None if self.bias is None else self.bias(chunk.take(doms.places))
            x = self.norm(self.layers.transform(chunk.take(doms.embedding), chunk, bias))
            vector = self._read_vector(x, chunk.take(doms.vectors), chunk)
            if token is None:
                pooled = segment_mean(x, chunk.segment, chunk.n_segments)
            else:
                pooled = x.index_select(0, chunk.offsets[:-1])
            return torch.cat([pooled.float(), vector], dim=-1)

        packing = self.layers.packing(event_dom_offsets, len(doms.embedding))
        read = self.layers.run_chunks(packing, run)
        return read[:, :-3], read[:, -3:]

    def _read_vector(self, x: Tensor, vectors: Tensor, chunk: Chunk) -> Tensor:
        if self.vector_weights is None:
            return x.new_zeros(chunk.n_segments, 3, dtype=torch.float32)
        weights = VECTOR_GAIN * self.vector_weights(x).float()
        return segment_mean((weights[:, :, None] * vectors).sum(1), chunk.segment, chunk.n_segments)


def _put_first(doms: DomInputs, token: Tensor, offsets: Tensor) -> tuple[DomInputs, Tensor]:
    """Put one token before the DOMs of each event; it lies nowhere and has no vectors."""
    n_events, n_doms = len(token), len(doms.embedding)
    dom = torch.arange(n_doms, device=offsets.device)
    event = torch.arange(n_events + 1, device=offsets.device)
    new_offsets = offsets + event
    # by row numbers, not by a mask, whose length a GPU would have to be asked for
    source = torch.empty(n_doms + n_events, dtype=torch.int64, device=offsets.device)
    source[dom + segment_idx(offsets, n_doms) + 1] = dom
    source[new_offsets[:-1]] = n_doms + event[:-1]

    def joined(rows: Tensor, of_token: Tensor) -> Tensor:
        return torch.cat([rows, of_token]).index_select(0, source)

    nowhere = doms.places.new_full((n_events, doms.places.shape[1]), torch.nan)
    nothing = doms.vectors.new_zeros((n_events, *doms.vectors.shape[1:]))
    together = DomInputs(
        joined(doms.embedding, token.to(doms.embedding.dtype)),
        joined(doms.places, nowhere),
        joined(doms.vectors, nothing),
    )
    return together, new_offsets
