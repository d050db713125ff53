"""The DOM transformer: the pulses of one DOM to one embedding."""

from __future__ import annotations

from torch import Tensor, nn

from iceaggr.config import ModelConfig
from iceaggr.models.packed_transformer import LayerStack
from iceaggr.models.packing import Chunk
from iceaggr.reconstruction.segments import segment_mean


class DomTransformer(nn.Module):
    """Transforms the pulses of each DOM together and averages them."""

    def __init__(self, config: ModelConfig, n_features: int) -> None:
        super().__init__()
        self.embed = nn.Linear(n_features, config.d_model)
        self.layers = LayerStack(config, config.n_dom_layers)
        self.norm = nn.LayerNorm(config.d_model)

    def forward(self, features: Tensor, dom_pulse_offsets: Tensor) -> Tensor:
        """Embed DOMs.

        features: (N, F) float per pulse; dom_pulse_offsets: (D+1,) int64. Returns (D, C).
        """

        def run(chunk: Chunk) -> Tensor:
            x = self.layers.transform(self.embed(chunk.take(features)), chunk)
            return segment_mean(self.norm(x), chunk.segment, chunk.n_segments)

        return self.layers.run_chunks(self.layers.packing(dom_pulse_offsets, len(features)), run)
