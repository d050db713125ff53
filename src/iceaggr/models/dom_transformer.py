"""The DOM transformer: the pulses of one DOM to one embedding."""

from __future__ import annotations

from torch import Tensor, nn

from iceaggr.config import ModelConfig
from iceaggr.models.packed_transformer import PackedLayer, run_chunks
from iceaggr.models.packing import Chunk, RowLimits, pack
from iceaggr.reconstruction.segments import segment_mean


class DomTransformer(nn.Module):
    """Transforms the pulses of each DOM together and averages them."""

    def __init__(self, config: ModelConfig, n_features: int) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Linear(n_features, config.d_model)
        self.layers = nn.ModuleList(PackedLayer(config) for _ in range(config.n_dom_layers))
        self.norm = nn.LayerNorm(config.d_model)

    def forward(self, features: Tensor, dom_pulse_offsets: Tensor) -> Tensor:
        """Embed DOMs.

        features: (N, F) float per pulse; dom_pulse_offsets: (D+1,) int64. Returns (D, C).
        """
        limits = RowLimits.of(self.config, dom_pulse_offsets.device)

        def run(chunk: Chunk) -> Tensor:
            x = self.embed(features[chunk.rows])
            for layer in self.layers:
                x = layer(x, chunk)
            return segment_mean(self.norm(x), chunk.segment, chunk.n_segments)

        return run_chunks(pack(dom_pulse_offsets, limits.per_chunk), run, limits.kept)
