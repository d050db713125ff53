"""The base of every section of a configuration."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator


class Section(BaseModel):
    """Base of every section: frozen, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _numbers_are_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse `n_epochs: true`, which Python would count as 1, and `n_epochs: "3"`."""
        annotation = cls.model_fields[info.field_name or ""].annotation
        if annotation in (int, float):
            _refuse_what_is_no_number(value, is_whole=annotation is int)
        elif _lists_numbers(annotation) and isinstance(value, list | tuple):
            for item in value:
                _refuse_what_is_no_number(item, is_whole=False)
        return value

    @field_validator("*", mode="before")
    @classmethod
    def _text_can_be_written(cls, value: Any) -> Any:
        """Refuse halves of characters (lone surrogates), which no document could hold."""
        for text in value if isinstance(value, list | tuple) else (value,):
            if isinstance(text, str) and any("\ud800" <= sign <= "\udfff" for sign in text):
                raise ValueError("text of whole characters")
        return value


def _lists_numbers(annotation: Any) -> bool:
    """Tell tuple[float, ...], whose numbers may have bounds, from everything else."""
    item = (*get_args(annotation), None)[0]
    return get_origin(annotation) is tuple and float in (item, getattr(item, "__origin__", None))


def _refuse_what_is_no_number(value: Any, *, is_whole: bool) -> None:
    if isinstance(value, bool):
        raise ValueError("a number, not true or false")
    if isinstance(value, str):
        raise ValueError(f"{'a whole' if is_whole else 'a'} number, not text")


# Bounds that several sections share. Every number of a configuration has a lower and an upper one.
#
# What lies beyond them is a slip of the keyboard: it would end a step hours later, out of memory or
# in an error of a library that knows no field. Each upper bound leaves room for any detector, data
# set and machine of today.

MAX_SEED = 2**31 - 1
"""Every random generator takes the seeds up to here, and the few numbers after it."""
MAX_EVENTS = 10**10
"""Seventy times the events of the public set."""
MAX_MINUTES = 525_600.0
"""A year."""
MAX_LEARNING_RATE = 1.0
"""A step of AdamW moves each weight by about the learning rate, and weights are below one."""

Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
LearningRate = Annotated[float, Field(gt=0, le=MAX_LEARNING_RATE)]


# Settings of the data path: events, normalisation, minibatches.

MAX_HELD_OUT_SHARE = 0.9
MAX_SALT_LENGTH = 100

LabelWord = Literal[
    "degrees",
    "columns_swapped",
    "azimuth_from_minus_pi",
    "elevation",
    "particle",
    "mirror_x",
    "mirror_y",
    "mirror_z",
    "x_y_swapped",
]
"""What `data.label_reading` can say of the label columns; `events/label_reading.py` explains and
applies the words."""


class DataConfig(Section):
    """Which events are used, and how they are split and stored."""

    n_events: int = Field(0, ge=0, le=MAX_EVENTS)
    """Use at most this many events of all splits together, in file order; 0 = all."""
    validation_share: float = Field(0.1, gt=0, lt=0.5)
    """Share of events held out for choosing checkpoints and watching training."""
    test_share: float = Field(0.1, gt=0, lt=0.5)
    """Share of events that only evaluation and promotion may read."""
    split_salt: str = "iceaggr-1"
    """Salt of the hash that assigns an event to its split: change it and every split changes."""
    n_events_per_shard: int = Field(2048, ge=1, le=1_000_000)
    """Events in one shard file, which is held in memory (a million: 3 GB); the last shard of a raw
    file may hold fewer."""
    work_unit_mib: int = Field(512, ge=1, le=1_048_576)
    """Raw bytes that one sharding task takes, in MiB; less is done before its pods have started."""
    max_work_units: int = Field(32, ge=1, le=32)
    """Upper bound on sharding tasks: Argo keeps a whole run in one object of 1 MiB."""
    max_rejected_share: float = Field(0.1, gt=0, le=1)
    """The run stops if a raw file loses a larger share of its events or of its pulses: the file is
    wrong, in its units, angles, ids or geometry."""
    detector: Literal[
        "",
        "icecube86",
        "hexagon",
        "hexagon-ice",
        "cluster",
        "flower-s",
        "flower-l",
        "flower-xl",
        "triangle",
    ] = ""
    """Built-in detector of raw events that bring no sensor_geometry.csv; empty = they bring one,
    because sensor ids alone are those of any detector."""
    allow_missing_files: bool = False
    """Shard what is there when the meta file lists batches whose files are missing."""
    label_reading: tuple[LabelWord, ...] = ()
    """What the label columns hold, where not the azimuth (0 to 2 pi) and zenith in radians of where
    the neutrino came from: degrees; columns_swapped; azimuth_from_minus_pi, to pi; elevation above
    the horizon for zenith; particle, the direction of travel; mirror_x, mirror_y, mirror_z;
    x_y_swapped, azimuth from y towards x."""
    accept_label_reading: bool = False
    """Go on with labels that the line fit contradicts, and say so on the data card."""

    @field_validator("label_reading")
    @classmethod
    def _words_differ(cls, words: tuple[LabelWord, ...]) -> tuple[LabelWord, ...]:
        if len(set(words)) < len(words):
            raise ValueError("each word once")
        return words

    @field_validator("split_salt")
    @classmethod
    def _salt_can_be_quoted(cls, salt: str) -> str:
        if len(salt) > MAX_SALT_LENGTH:
            raise ValueError(f"at most {MAX_SALT_LENGTH} characters, not {len(salt):,}")
        return salt

    @model_validator(mode="after")
    def _events_are_left_for_training(self) -> DataConfig:
        held_out = self.validation_share + self.test_share
        if held_out > MAX_HELD_OUT_SHARE:
            raise ValueError(
                f"validation_share and test_share of at most {MAX_HELD_OUT_SHARE:g} together, not"
                f" {held_out:g}: the rest is what is trained on"
            )
        return self


class NormalizationConfig(Section):
    """How raw inputs become numbers near one."""

    preset: Literal["fitted", "seed", "raw"] = "fitted"
    """fitted = from the train split; seed = fixed constants; raw = none, to see it fail."""
    max_abs: float = Field(10.0, gt=0, le=1e9)
    """A normalised value beyond this counts as an outlier; raw values stay below 1e9."""
    max_outlier_share: float = Field(0.01, ge=0, le=1)
    """A batch with a larger share of outliers is refused."""
    constant_features: tuple[str, ...] = ()
    """Features that may be constant because the detector lacks them, such as auxiliary."""


class BatchConfig(Section):
    """How events are grouped into minibatches."""

    n_events: int = Field(256, ge=1, le=1_000_000)
    """Events in one minibatch."""
    max_doms_per_event: int = Field(512, ge=1, le=1_000_000)
    """DOMs kept per event: triggering first, then by charge, spread over time."""
    max_pulses_per_dom: int = Field(64, ge=1, le=10_000_000)
    """Pulses kept per DOM: triggering first, then by charge, always with the first one."""
    leave_out_auxiliary: bool = False
    """Leave out auxiliary pulses, before the caps; an event that has no others keeps them."""
    max_doms_per_batch: int = Field(0, ge=0, le=100_000_000)
    """Token budget: no batch holds more DOMs than this, and batches mix like lengths; 0 = none."""
    n_mixed_shards: int = Field(16, ge=1, le=100_000)
    """Shards held in memory together, from all of which each batch draws its events; a shuffle
    takes more where batches or groups of like length are large, so that neighbours do not meet."""
    n_workers: int = Field(2, ge=0, le=256)
    """Background threads that read and assemble batches; 0 = in the caller."""
    n_batches_ahead: int = Field(16, ge=1, le=4096)
    """Batches assembled before they are asked for."""
    cache_folder: str = ""
    """Local folder that keeps copies of remote shards; empty = read them again each epoch."""
    cache_gib: float = Field(50.0, gt=0, le=1_048_576)
    """Size of the cache folder, beyond which the shards used longest ago are deleted."""
    seed: Seed = 0
    """Seed of the shuffle."""

    @field_validator("cache_folder")
    @classmethod
    def _cache_is_local(cls, folder: str) -> str:
        if "://" in folder:
            raise ValueError("a local folder, not a URI")
        if not folder.isprintable():
            raise ValueError("a local folder whose name has printable characters only")
        return folder

    @model_validator(mode="after")
    def _budget_holds_an_event(self) -> BatchConfig:
        if 0 < self.max_doms_per_batch < self.max_doms_per_event:
            raise ValueError(
                f"max_doms_per_batch {self.max_doms_per_batch} is less than "
                f"max_doms_per_event {self.max_doms_per_event}"
            )
        return self


# Settings of the network and of what it minimises.


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


# Settings of the optimisation and of the short run before it.

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
    a longer validation, ends later. Reading the inputs before and
    registering metrics after are not in it."""
    learning_rate: LearningRate = 3e-4
    """Peak learning rate."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """muon = Muon for the matrices inside the network, AdamW for everything else."""
    weight_decay: float = Field(1e-5, ge=0, le=10)
    """Decoupled weight decay of matrices; biases, norms and other vectors are not decayed."""
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
    max_kappa_map_events: int = Field(40_000, ge=2, le=MAX_EVENTS)
    """The last validation goes on to this many events, as the map of kappa is fitted to them."""
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


# Settings of evaluation and promotion.


class EvaluationConfig(Section):
    """How held-out events are scored."""

    n_bootstrap: int = Field(1000, ge=100, le=100_000)
    """Bootstrap samples behind each interval; 4 KiB of memory each."""
    confidence: float = Field(0.95, gt=0, lt=1)
    """Probability that an interval covers the true value."""
    max_events: int = Field(0, ge=0, le=MAX_EVENTS)
    """Stop after the minibatch that completes this many test events, two at least; 0 = all."""
    min_events_per_bin: int = Field(100, ge=2, le=1_000_000)
    """A bin with fewer events is marked as small in tables."""
    likelihood_fit: bool = True
    """Score the Pandel likelihood fit too, by far the slowest baseline (milliseconds per event)."""
    n_displays: int = Field(2, ge=0, le=6)
    """Event displays for each of the best, the median and the worst events."""
    refine_events: int = Field(60, ge=0, le=100_000)
    """Bright test events whose predictions are refined photon by photon, half a second of one core
    each, and compared with the model's own in the report; 0 = none."""
    seed: Seed = 0
    """Seed of the bootstrap, the random baseline and the choice of displayed events."""

    @field_validator("max_events")
    @classmethod
    def _figures_have_errors(cls, max_events: int) -> int:
        if max_events == 1:
            raise ValueError("0 (all) or at least 2: no figure of one event has an error")
        return max_events


class PromotionConfig(Section):
    """When a challenger replaces the champion."""

    model_name: str = "iceaggr-direction"
    """Name in the model registry."""
    min_gain_deg: float = Field(0.01, ge=0, le=180)
    """Smallest paired gain in mean opening angle, in degrees, that is worth a promotion."""
    min_sigma: float = Field(1.0, ge=0, le=1000)
    """The paired gain in mean opening angle must exceed this many of its standard errors."""
    max_calibration_loss: float = Field(0.02, ge=0, le=1)
    """By how much the challenger's mean coverage error may exceed the champion's."""
    max_calibration_gap: float = Field(0.25, gt=0, le=1)
    """No model is promoted whose coverage at 50, 68 and 90 % is off by more than this on average;
    models of loss.kind angle, which trains no kappa, are not asked."""
    first_beats_fits: bool = True
    """The first champion must be no worse, beyond its error, than the best classical fit of the
    test events; false asks it to beat the best constant direction only: trials of a few steps."""
    min_shared_events: int = Field(500, ge=2, le=MAX_EVENTS)
    """Against a champion of another split: fewest events that are test events of both splits."""

    @field_validator("model_name")
    @classmethod
    def _name_can_be_registered(cls, name: str) -> str:
        if not (0 < len(name) <= 100 and name.isprintable() and name == name.strip()):
            raise ValueError("1 to 100 printable characters, no blank at either end")
        if set(name) & set("/\\:@'"):
            raise ValueError("no / \\ : @ or ' in it: models:/NAME@ALIAS names it")
        return name
