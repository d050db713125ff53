"""Settings of the optimisation and of the short run before it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from iceaggr.config.bounds import MAX_EVENTS, MAX_MINUTES, LearningRate, Seed
from iceaggr.config.section import Section

MAX_RATES = 100
"""Each rate is a short training of its own."""


class TrainingConfig(Section):
    """The optimisation."""

    start_from: Literal["scratch", "champion"] = "scratch"
    """champion = weights and normalisation of the champion of promotion.model_name; the settings of
    network, split and normalisation must be its own. While there is none, from scratch."""
    n_epochs: int = Field(20, ge=1, le=1_000_000)
    """Passes over the train split."""
    max_minutes: float = Field(0.0, ge=0, le=MAX_MINUTES)
    """Wall-clock limit in minutes over all restarts; 0 = none. It covers the steps, validations and
    checkpoints: training stops early enough for the last validation, as long as that takes after
    the speed so far, but keeps at most half of the limit for it. A machine that becomes slower, or
    a longer validation (max_validation_events), ends later. Reading the inputs before and
    registering metrics after are not in it."""
    learning_rate: LearningRate = 3e-4
    """Peak learning rate."""
    weight_decay: float = Field(1e-5, ge=0, le=10)
    """AdamW weight decay of matrices; biases, norms and other vectors are not decayed."""
    max_gradient_norm: float = Field(1.0, gt=0, le=1e9)
    """Gradients are scaled down to this norm; 1e9 = never."""
    schedule: Literal["constant", "one_cycle"] = "constant"
    """constant = the seed's; one_cycle = warm-up then cosine decay."""
    warmup_share: float = Field(0.05, ge=0, lt=1)
    """Share of the run used to warm up, with one_cycle."""
    ema_decay: float = Field(0.0, ge=0, lt=1)
    """Decay per step of the averaged weights that are validated and saved; 0 = no averaging."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """bfloat16 = autocast of the forward pass; auto = bfloat16 on a GPU, float32 on a CPU."""
    compile_layers: Literal["auto", "on", "off"] = "auto"
    """Fuse attention and the layers around it into few GPU kernels, compiled in the first minute;
    auto = on a GPU where a C compiler is found, for heads of width 16 or more; on = fail where it
    cannot be."""
    checkpoint_every_n_epochs: int = Field(1, ge=1, le=1_000_000)
    """Epochs between checkpoints."""
    checkpoint_every_minutes: float = Field(10.0, gt=0, le=MAX_MINUTES)
    """Minutes after which a checkpoint is written inside an epoch."""
    n_checkpoints_kept: int = Field(2, ge=1, le=1000)
    """Newest checkpoints that stay in storage."""
    validation_every_minutes: float = Field(0.0, ge=0, le=MAX_MINUTES)
    """Minutes between validations inside an epoch; 0 = only at its end and that of the run."""
    max_validation_events: int = Field(10_000, ge=2, le=MAX_EVENTS)
    """Validation stops after the minibatch that completes this many events, each time the same."""
    stop_if_not_learning_after_n_steps: int = Field(0, ge=0, le=10**9)
    """Validations from this step on stop a run that is collapsed, no better than the best constant
    prediction, worse than its seed, or more confident than it may be; 0 = only log it."""
    stop_if_diverged: bool = True
    """Stop a ruined run, at any step: a likelihood far worse than that of knowing nothing, or an
    angle far worse than that of the fit it started from; false = only log it."""
    max_mean_vector_length: float = Field(0.98, gt=0, le=1)
    """Predictions count as collapsed when the mean of the unit vectors is longer than this."""
    log_every_n_steps: int = Field(50, ge=1, le=1_000_000)
    """Optimiser steps between points of the training curves."""
    seed: Seed = 0
    """Seed of weights and dropout."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto = a GPU if there is one; cuda = fail without one. A number of GPUs given to the run
    (--gpu-count, train_gpu_count of the form) decides for auto and must not contradict the others:
    0 = cpu, more = cuda."""


class LearningCheckConfig(Section):
    """A short run that must learn before an expensive one may start."""

    n_steps: int = Field(50, ge=10, le=100_000)
    """Optimiser steps per row of the table."""
    learning_rates: tuple[LearningRate, ...] = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3)
    """Learning rates tried by the full table."""
    n_batches: int = Field(2, ge=1, le=1000)
    """Fixed train batches that the steps revisit in turn."""
    n_events_per_batch: int = Field(64, ge=8, le=100_000)
    """Events in each of these batches."""
    min_loss_drop: float = Field(0.005, ge=0, le=10)
    """Fall of the mean loss over the fixed events that counts as learning."""

    @field_validator("learning_rates")
    @classmethod
    def _table_has_rows(cls, rates: tuple[float, ...]) -> tuple[float, ...]:
        if not 1 <= len(rates) <= MAX_RATES:
            raise ValueError(f"1 to {MAX_RATES} rates, not {len(rates)}")
        return rates
