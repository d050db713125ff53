"""Configuration: one frozen model per component, one sentence per field, unknown keys refused.

A configuration file is YAML with the sections of `ExperimentConfig`; what it leaves out keeps the
default below. `configs/` holds the presets. Nothing else in the project reads settings.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from iceaggr.errors import ConfigError

PRESETS = ("laptop", "baseline_1m", "best")


class Section(BaseModel):
    """Base of every section: frozen, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class DataConfig(Section):
    """Which events are used, and how they are split and stored."""

    n_events: int = Field(0, ge=0)
    """Use at most this many events of all splits together, in file order; 0 = all."""
    validation_share: float = Field(0.1, gt=0, lt=0.5)
    """Share of events held out for choosing checkpoints and watching training."""
    test_share: float = Field(0.1, gt=0, lt=0.5)
    """Share of events that only evaluation and promotion may read."""
    split_salt: str = "iceaggr-1"
    """Salt of the hash that assigns an event to its split: change it and every split changes."""
    n_events_per_shard: int = Field(2048, ge=1)
    """Events in one shard file; the last shard of a raw file may hold fewer."""
    work_unit_mib: int = Field(256, ge=1)
    """Raw bytes that one sharding task takes, in MiB."""
    max_work_units: int = Field(128, ge=1, le=128)
    """Upper bound on sharding tasks: KFP hands all their results to one command line of 128 KiB."""
    allow_missing_files: bool = False
    """Shard what is there when the meta file lists batches whose files are missing."""


class NormalizationConfig(Section):
    """How raw inputs become numbers near one."""

    preset: Literal["fitted", "seed", "raw"] = "fitted"
    """fitted = from the train split; seed = fixed constants; raw = none, to see it fail."""
    max_abs: float = Field(10.0, gt=0)
    """A normalised value beyond this counts as an outlier."""
    max_outlier_share: float = Field(0.01, ge=0, le=1)
    """A batch with a larger share of outliers is refused."""
    constant_features: tuple[str, ...] = ()
    """Features that may be constant because the detector lacks them, such as auxiliary."""


class BatchConfig(Section):
    """How events are grouped into minibatches."""

    n_events: int = Field(256, ge=1)
    """Events in one minibatch."""
    max_doms_per_event: int = Field(512, ge=1)
    """DOMs kept per event: triggering first, then by charge, spread over time."""
    max_pulses_per_dom: int = Field(64, ge=1)
    """Pulses kept per DOM: triggering first, then by charge, always with the first one."""
    max_doms_per_batch: int = Field(0, ge=0)
    """Token budget: no batch holds more DOMs than this, and batches mix like lengths; 0 = none."""
    n_mixed_shards: int = Field(16, ge=1)
    """Shards held in memory together, from all of which each batch draws its events."""
    n_workers: int = Field(2, ge=0)
    """Background threads that read and assemble batches; 0 = in the caller."""
    n_batches_ahead: int = Field(16, ge=1)
    """Batches assembled before they are asked for."""
    cache_folder: str = ""
    """Local folder that keeps copies of remote shards; empty = read them again each epoch."""
    cache_gib: float = Field(50.0, gt=0)
    """Size of the cache folder, beyond which the shards used longest ago are deleted."""
    seed: int = 0
    """Seed of the shuffle."""

    @model_validator(mode="after")
    def _budget_holds_an_event(self) -> BatchConfig:
        if 0 < self.max_doms_per_batch < self.max_doms_per_event:
            raise ValueError(
                f"max_doms_per_batch {self.max_doms_per_batch} is less than "
                f"max_doms_per_event {self.max_doms_per_event}"
            )
        return self


class ModelConfig(Section):
    """The network: pulses -> DOM transformer -> event transformer -> direction."""

    d_model: int = Field(128, ge=8)
    """Width of both transformers."""
    n_heads: int = Field(4, ge=1)
    """Attention heads of both transformers."""
    n_dom_layers: int = Field(4, ge=0)
    """Layers over the pulses of one DOM."""
    n_event_layers: int = Field(4, ge=1)
    """Layers over the DOMs of one event."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout share in both transformers."""
    feedforward_factor: int = Field(4, ge=1)
    """Width of the feed-forward networks, in units of d_model."""
    max_rows_per_chunk: int = Field(8192, ge=1)
    """Pulses or DOMs computed at once; beyond, activations are recomputed to bound the memory."""
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
    likelihood_share: float = Field(0.05, ge=0)
    """Weight of the likelihood that stays beside the angle, so that kappa keeps its meaning."""


class TrainingConfig(Section):
    """The optimisation."""

    n_epochs: int = Field(20, ge=1)
    """Passes over the train split."""
    max_minutes: float = Field(0.0, ge=0)
    """Wall-clock limit in minutes, validation included, over all restarts; 0 = none."""
    learning_rate: float = Field(3e-4, gt=0)
    """Peak learning rate."""
    weight_decay: float = Field(1e-5, ge=0)
    """AdamW weight decay of matrices; biases, norms and other vectors are not decayed."""
    max_gradient_norm: float = Field(1.0, gt=0)
    """Gradients are scaled down to this norm."""
    schedule: Literal["constant", "one_cycle"] = "constant"
    """constant = the seed's; one_cycle = warm-up then cosine decay."""
    warmup_share: float = Field(0.05, ge=0, lt=1)
    """Share of the run used to warm up, with one_cycle."""
    ema_decay: float = Field(0.0, ge=0, lt=1)
    """Decay per step of the averaged weights that are validated and saved; 0 = no averaging."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """bfloat16 = autocast of the forward pass; auto = bfloat16 on a GPU, float32 on a CPU."""
    checkpoint_every_n_epochs: int = Field(1, ge=1)
    """Epochs between checkpoints."""
    checkpoint_every_minutes: float = Field(10.0, gt=0)
    """Minutes after which a checkpoint is written inside an epoch."""
    n_checkpoints_kept: int = Field(2, ge=1)
    """Newest checkpoints that stay in storage."""
    validation_every_minutes: float = Field(0.0, ge=0)
    """Minutes between validations inside an epoch; 0 = only at its end and that of the run."""
    max_validation_events: int = Field(10_000, ge=1)
    """Validation reads at most this many events, always the same ones."""
    stop_if_not_learning_after_n_steps: int = Field(0, ge=0)
    """Validations from this step on stop a run that is collapsed or no better than the best
    constant prediction; 0 = only log it."""
    max_mean_vector_length: float = Field(0.98, gt=0, le=1)
    """Predictions count as collapsed when the mean of the unit vectors is longer than this."""
    log_every_n_steps: int = Field(50, ge=1)
    """Optimiser steps between points of the training curves."""
    seed: int = 0
    """Seed of weights and dropout."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto = a GPU if there is one; cuda = fail without one."""


class LearningCheckConfig(Section):
    """A short run that must learn before an expensive one may start."""

    n_steps: int = Field(50, ge=10)
    """Optimiser steps per row of the table."""
    learning_rates: tuple[float, ...] = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3)
    """Learning rates tried by the full table."""
    n_batches: int = Field(2, ge=1)
    """Fixed train batches that the steps revisit in turn."""
    n_events_per_batch: int = Field(64, ge=8)
    """Events in each of these batches."""
    min_loss_drop: float = Field(0.005, ge=0)
    """Fall of the mean loss over the fixed events that counts as learning."""


class EvaluationConfig(Section):
    """How held-out events are scored."""

    n_bootstrap: int = Field(1000, ge=100)
    """Bootstrap samples behind each interval."""
    confidence: float = Field(0.95, gt=0, lt=1)
    """Probability that an interval covers the true value."""
    max_events: int = Field(0, ge=0)
    """Stop after the minibatch that completes this many test events; 0 = all."""
    min_events_per_bin: int = Field(100, ge=2)
    """A bin with fewer events is marked as small in tables."""
    likelihood_fit: bool = True
    """Score the Pandel likelihood fit too, by far the slowest baseline (milliseconds per event)."""
    n_displays: int = Field(2, ge=0, le=6)
    """Event displays for each of the best, the median and the worst events."""
    seed: int = 0
    """Seed of the bootstrap, the random baseline and the choice of displayed events."""


class PromotionConfig(Section):
    """When a challenger replaces the champion."""

    model_name: str = "iceaggr-direction"
    """Name in the model registry."""
    min_sigma: float = Field(1.0, ge=0)
    """The paired gain in mean opening angle must exceed this many of its standard errors."""
    max_calibration_loss: float = Field(0.05, ge=0)
    """By how much the challenger's mean coverage error may exceed the champion's."""


class ExperimentConfig(Section):
    """Everything that a run depends on besides its data."""

    name: str = "experiment"
    """Shown in MLflow and in reports."""
    data: DataConfig = DataConfig()
    normalization: NormalizationConfig = NormalizationConfig()
    batches: BatchConfig = BatchConfig()
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    training: TrainingConfig = TrainingConfig()
    learning_check: LearningCheckConfig = LearningCheckConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    promotion: PromotionConfig = PromotionConfig()

    @model_validator(mode="after")
    def _heads_divide_width(self) -> ExperimentConfig:
        if self.model.d_model % self.model.n_heads:
            raise ValueError(
                f"model.d_model {self.model.d_model} is not a multiple of "
                f"model.n_heads {self.model.n_heads}"
            )
        return self


def parse_config(settings: dict[str, Any], where: str = "configuration") -> ExperimentConfig:
    """Validate settings. Raises: ConfigError naming the field, the value and what is allowed."""
    try:
        return ExperimentConfig.model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "(whole file)"
        unknown = first["type"] == "extra_forbidden"
        raise ConfigError(
            f"unknown key {field}" if unknown else f"bad value for {field}",
            where=where,
            found=None if unknown else repr(first.get("input")),
            expected="a field of the section" if unknown else first["msg"],
            remedy="See src/iceaggr/config.py for every field and its meaning",
        ) from None


def load_config(path: str | Path) -> ExperimentConfig:
    """Read a YAML configuration. Raises: ConfigError if it is missing, not YAML or not valid."""
    path = Path(path)
    if not path.is_file():
        raise ConfigError(
            "configuration file not found", where=str(path), remedy="Presets are in configs/"
        )
    try:
        settings = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        line = " ".join(str(error).split())
        raise ConfigError("configuration is not YAML", where=str(path), found=line) from None
    if not isinstance(settings, dict):
        raise ConfigError(
            "configuration has no sections",
            where=str(path),
            found=type(settings).__name__,
            expected="a mapping",
        )
    return parse_config(settings, where=str(path))
