"""Settings of the network and of what it minimises."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from iceaggr.config.section import Section


class ModelConfig(Section):
    """The network: pulses -> DOM transformer -> event transformer -> direction."""

    d_model: int = Field(128, ge=8, le=8192)
    """Width of both transformers."""
    n_heads: int = Field(4, ge=1, le=256)
    """Attention heads of both transformers."""
    n_dom_layers: int = Field(4, ge=0, le=64)
    """Layers over the pulses of one DOM."""
    n_event_layers: int = Field(4, ge=1, le=64)
    """Layers over the DOMs of one event."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout share in both transformers."""
    feedforward_factor: int = Field(4, ge=1, le=64)
    """Width of the feed-forward networks, in units of d_model."""
    max_rows_per_chunk: int = Field(0, ge=0, le=2**31 - 1)
    """Pulses or DOMs computed at once; 0 = what suits the device."""
    max_rows_kept: int = Field(0, ge=0, le=2**31 - 1)
    """Pulses or DOMs whose activations stay in memory for the backward pass, in each transformer;
    those beyond are recomputed, but for the last chunk. 0 = what suits the device."""
    dom_statistics: bool = False
    """Describe each DOM by order statistics of its pulses too; the only input at n_dom_layers 0."""
    fourier_bands: int = Field(0, ge=0, le=32)
    """Wavelengths at which times and positions are also given as sine and cosine, in float32."""
    event_token: bool = False
    """Read the event from a token that carries event-level features, instead of mean pooling."""
    relative_bias: bool = False
    """Bias attention between two DOMs by their distance and their delay to the speed of light."""
    seed: Literal["none", "line_fit", "improved", "likelihood"] = "none"
    """Classical fit that seed_frame and seed_head start from."""
    seed_frame: bool = False
    """Describe DOMs and pulses in the frame of the seed: rotated positions, residual times."""
    seed_head: bool = False
    """Predict in the frame of the seed, starting at 'the seed is right'."""
    seed_alternatives: bool = False
    """Tell the event token the directions of the other classical fits, in the frame of the seed."""
    vector_readout: bool = False
    """Add to the prediction the DOMs' positions in the seed's frame, weighted by the network."""
    point_fit: bool = False
    """Measure distances and delays from a fitted point of light, not from the charge centre."""

    @model_validator(mode="after")
    def _parts_fit_together(self) -> ModelConfig:
        if self.d_model % self.n_heads:
            raise ValueError(f"d_model {self.d_model} is no multiple of n_heads {self.n_heads}")
        if self.n_dom_layers == 0 and not self.dom_statistics:
            raise ValueError("n_dom_layers 0 needs dom_statistics, else nothing reads the pulses")
        if (self.seed_frame or self.seed_head) and self.seed == "none":
            raise ValueError("seed_frame and seed_head need a seed")
        if self.seed != "none" and not (
            self.seed_frame or self.seed_head or self.seed_alternatives or self.point_fit
        ):
            raise ValueError(f"nothing uses the seed {self.seed}: set seed_frame or seed_head")
        if (self.seed_alternatives or self.point_fit) and not self.seed_frame:
            raise ValueError("seed_alternatives and point_fit need seed_frame")
        if self.vector_readout and not (self.seed_frame and self.seed_head):
            raise ValueError("vector_readout needs seed_frame and seed_head")
        if self.seed_alternatives and not self.event_token:
            raise ValueError("seed_alternatives are read by the event_token: switch it on")
        return self


class LossConfig(Section):
    """What training minimises."""

    kind: Literal["angle", "von_mises_fisher", "von_mises_fisher_then_angle"] = "angle"
    """angle = opening angle in radians; von_mises_fisher = negative log-likelihood; or in turn."""
    angle_from_progress: float = Field(0.7, ge=0, le=1)
    """Share of training after which von_mises_fisher_then_angle minimises the angle."""
    likelihood_share: float = Field(0.05, ge=0, le=100)
    """Weight of the likelihood that stays beside the angle, so that kappa keeps its meaning."""
