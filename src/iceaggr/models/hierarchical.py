"""The direction model: pulses -> DOM transformer -> event transformer -> vector."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from iceaggr.batches.event_batch import EventBatch, segment_idx
from iceaggr.config import ModelConfig
from iceaggr.models.input_features import Features, InputFeatures
from iceaggr.models.kappa_map import KappaMap
from iceaggr.models.normalizer import Normalizer
from iceaggr.models.packed_transformer import LayerStack, RelativeBias
from iceaggr.models.packing import Chunk
from iceaggr.models.seed_frame import N_VECTORS
from iceaggr.normalization_document import Normalization
from iceaggr.reconstruction.segments import segment_mean

# DirectionOutput: what a model predicts for each event.

_SHORTEST = 1e-12


@dataclass(frozen=True)
class DirectionOutput:
    """One vector per event: it points to the origin and is as long as the concentration kappa.

    vector: (B, 3) float32
    seed: (B, 3) float32, unit vectors of the classical fit that the prediction started from, or
        None if it started from none
    """

    vector: Tensor
    seed: Tensor | None = None

    @property
    def direction(self) -> Tensor:
        """Give unit vectors, (B, 3): straight up for one of length zero, NaN if not finite."""
        length = torch.linalg.vector_norm(self.vector.double(), dim=-1, keepdim=True)
        up = torch.zeros_like(self.vector).double()
        up[..., 2] = 1
        unit = self.vector.double() / length.clamp_min(_SHORTEST)
        # asked this way round NaN, which is neither longer nor shorter, stays what it is
        return torch.where(length <= _SHORTEST, up, unit).to(self.vector.dtype)

    @property
    def kappa(self) -> Tensor:
        """Give the von Mises-Fisher concentration, (B,)."""
        return torch.linalg.vector_norm(self.vector, dim=-1)


# The head: event embedding to a vector whose direction and length are the prediction.

MAX_LENGTH = 12.0
"""Longest raw vector: kappa = sinh(12) = 81,000, a spread of 0.2 degrees."""


class DirectionHead(nn.Module):
    """Maps an embedding to a direction and a concentration, kappa = sinh(|raw vector|).

    sinh is the identity for the small concentrations of a beginner, and lets the large ones of
    clear tracks (10,000 and more) be reached from raw numbers near ten.
    """

    def __init__(self, width: int, start_at_seed: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.hidden = nn.Linear(width, width)
        self.out = nn.Linear(width, 3)
        if start_at_seed:
            with torch.no_grad():
                self.out.weight.mul_(0.1)
                self.out.bias.copy_(torch.tensor([0.0, 0.0, 1.0]))

    def forward(
        self, embedding: Tensor, vector: Tensor, rotation: Tensor | None = None
    ) -> DirectionOutput:
        """Predict.

        embedding: (B, C). vector: (B, 3), added to what the embedding says.
        rotation: (B, 3, 3), rows are the axes of the frame the prediction is made in, or None for
        the detector's own. Returns vectors in the detector's frame.
        """
        with torch.autocast(embedding.device.type, enabled=False):
            # sixteen bits would round the direction to 0.2 degrees
            embedding = embedding.float()
            raw = self.out(nn.functional.gelu(self.hidden(self.norm(embedding)))) + vector
            if rotation is not None:
                raw = (rotation * raw[:, :, None]).sum(1)
        length = (raw.square().sum(-1, keepdim=True) + 1e-12).sqrt()
        kappa = torch.sinh(length.clamp(max=MAX_LENGTH))
        seed = None if rotation is None else rotation[:, 2]
        return DirectionOutput(raw * (kappa / length), seed)


# The DOM transformer: the pulses of one DOM to one embedding.


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


# The event transformer: the DOMs of one event to one embedding.

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


class DirectionModel(nn.Module):
    """Predicts a direction per event from its raw pulses.

    Everything that differs between the seed's model and the physics-informed one is a field of
    the configuration; the raw batch goes in, and the model normalises it itself.
    kappa_map: the last word on kappa, set when training ends; None while it runs
    """

    def __init__(self, config: ModelConfig, normalization: Normalization) -> None:
        super().__init__()
        self.config = config
        self.normalization = normalization
        self.kappa_map: KappaMap | None = None
        self.normalizer = Normalizer(normalization)
        self.inputs = InputFeatures(config, normalization)
        n_dom_inputs = self.inputs.n_dom_features
        self.dom_transformer: DomTransformer | None = None
        if config.n_dom_layers:
            self.dom_transformer = DomTransformer(config, self.inputs.n_pulse_features)
            n_dom_inputs += config.d_model
        self.dom_embed = _embedder(n_dom_inputs, config)
        self.token_embed = (
            nn.Linear(self.inputs.n_event_features, config.d_model) if config.event_token else None
        )
        self.event_transformer = EventTransformer(config)
        self.head = DirectionHead(config.d_model, start_at_seed=config.seed_head)

    def features_of(self, batch: EventBatch) -> Features:
        """Compute what the network sees of a batch: no weights, so it may be done ahead."""
        return self.inputs(batch, self.normalizer(batch))

    def forward(self, batch: EventBatch, features: Features | None = None) -> DirectionOutput:
        """Predict directions and concentrations, (B, 3); no event depends on its batch mates.

        features: those of this batch, if they were computed ahead.
        """
        if features is None:
            features = self.features_of(batch)
        doms = features.doms
        if self.dom_transformer is not None:
            embedded = self.dom_transformer(features.pulses, batch.dom_pulse_offsets)
            doms = torch.cat([embedded, doms.to(embedded.dtype)], dim=-1)
        token = None if self.token_embed is None else self.token_embed(features.events)
        vectors = features.vectors
        if vectors is None:
            vectors = features.places.new_zeros(batch.n_doms, 0, 3)
        events, vector = self.event_transformer(
            DomInputs(self.dom_embed(doms), features.places, vectors),
            token,
            batch.event_dom_offsets,
        )
        output = self.head(events, vector, features.rotation if self.config.seed_head else None)
        if self.kappa_map is None:
            return output
        return replace(output, vector=self.kappa_map.rescaled(output.vector))

    def compile_layers(self, backend: str = "inductor") -> None:
        """Attend with one fused kernel from now on, with layers compiled by a backend of torch.

        The first batch then takes a minute, in training and again in evaluation. The weights and
        what is computed from them stay the same.
        """
        if self.dom_transformer is not None:
            self.dom_transformer.layers.compile_layers(backend)
        self.event_transformer.layers.compile_layers(backend)

    def n_parameters(self) -> int:
        """Count the trainable parameters."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    def n_flops(self, batch: EventBatch) -> float:
        """Count the multiplications and additions of matrix products in one forward pass."""
        width, factor = self.config.d_model, self.config.feedforward_factor
        per_row = 2 * width * width * (4 + 2 * factor)
        rows = 0.0
        pairs = 0.0
        for n_rows, offsets, n_layers in (
            (batch.n_pulses, batch.dom_pulse_offsets, self.config.n_dom_layers),
            (batch.n_doms, batch.event_dom_offsets, self.config.n_event_layers),
        ):
            rows += n_layers * n_rows
            pairs += n_layers * float(offsets.diff().double().square().sum())
        return rows * per_row + pairs * 4 * width


def build_model(config: ModelConfig, normalization: Normalization) -> DirectionModel:
    """Build an untrained model. The caller seeds torch's generator for repeatable weights."""
    return DirectionModel(config, normalization)


def _embedder(n_inputs: int, config: ModelConfig) -> nn.Module:
    """Map a DOM's inputs to its token: linear after a DOM transformer, else a small network."""
    if config.n_dom_layers:
        return nn.Linear(n_inputs, config.d_model)
    hidden = 2 * config.d_model
    return nn.Sequential(nn.Linear(n_inputs, hidden), nn.GELU(), nn.Linear(hidden, config.d_model))
