"""The direction model: pulses -> DOM transformer -> event transformer -> vector."""

from __future__ import annotations

import torch
from torch import nn

from iceaggr.batches.event_batch import EventBatch
from iceaggr.config import ModelConfig
from iceaggr.models.direction_head import DirectionHead
from iceaggr.models.direction_output import DirectionOutput
from iceaggr.models.dom_transformer import DomTransformer
from iceaggr.models.event_transformer import DomInputs, EventTransformer
from iceaggr.models.input_features import Features, InputFeatures
from iceaggr.normalization import Normalization, Normalizer


class DirectionModel(nn.Module):
    """Predicts a direction per event from its raw pulses.

    Everything that differs between the seed's model and the physics-informed one is a field of
    the configuration; the raw batch goes in, and the model normalises it itself.
    """

    def __init__(self, config: ModelConfig, normalization: Normalization) -> None:
        super().__init__()
        self.config = config
        self.normalization = normalization
        self.normalizer = Normalizer(normalization)
        self.inputs = InputFeatures(config)
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
        return self.head(events, vector, features.rotation if self.config.seed_head else None)

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
