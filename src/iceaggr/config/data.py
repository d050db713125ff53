"""Settings of the data path: events, normalisation, minibatches."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from iceaggr.config.bounds import MAX_EVENTS, Seed
from iceaggr.config.section import Section

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
    detector: Literal["", "icecube86"] = ""
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
