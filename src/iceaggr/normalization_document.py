"""The normalisation document: how each input feature is scaled, as versioned JSON."""

from __future__ import annotations

import json
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from iceaggr.errors import NormalizationError
from iceaggr.validation import read_model

INPUT_FEATURES = ("time_ns", "charge_pe", "auxiliary", "x_m", "y_m", "z_m", "sensor_idx")
POSITIONS = ("x_m", "y_m", "z_m")


class FeatureScaling(BaseModel):
    """What happens to one feature: (transform(value) - centre) / scale."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    transform: Literal["identity", "log10"] = "identity"
    centre: float = 0.0
    scale: float = Field(1.0, gt=0)


class Normalization(BaseModel):
    """The versioned document: one scaling per input feature, and where it comes from."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    version: Literal[1] = 1
    preset: Literal["fitted", "seed", "raw"]
    time_ns: FeatureScaling = FeatureScaling()
    charge_pe: FeatureScaling = FeatureScaling()
    auxiliary: FeatureScaling = FeatureScaling()
    x_m: FeatureScaling = FeatureScaling()
    y_m: FeatureScaling = FeatureScaling()
    z_m: FeatureScaling = FeatureScaling()
    sensor_idx: FeatureScaling = FeatureScaling()

    @model_validator(mode="after")
    def _only_charge_has_a_logarithm(self) -> Normalization:
        for name in INPUT_FEATURES:
            if name != "charge_pe" and self.scaling(name).transform == "log10":
                raise ValueError(f"{name} can be zero or negative and has no logarithm")
        return self

    def scaling(self, name: str) -> FeatureScaling:
        """Look up the scaling of one of INPUT_FEATURES."""
        found: FeatureScaling = getattr(self, name)
        return found

    def sketched_feature(self, name: str) -> str:
        """Name the sketch feature whose values are centred and scaled: charge may be its log10."""
        return "log10_charge" if self.scaling(name).transform == "log10" else name

    @classmethod
    def seed(cls) -> Normalization:
        """Give the fixed constants of the seed model, for comparison.

        Source: the seed model's input layer: (t - 1e4)/3e4, log10(q)/3, xyz/500, sensor id by
        the number of DOMs of IceCube-86.
        """
        # here and not above: only this preset needs a sensor table
        from iceaggr.detector import icecube86

        position = FeatureScaling(scale=500.0)
        return cls(
            preset="seed",
            time_ns=FeatureScaling(centre=1e4, scale=3e4),
            charge_pe=FeatureScaling(transform="log10", scale=3.0),
            x_m=position,
            y_m=position,
            z_m=position,
            sensor_idx=FeatureScaling(scale=float(icecube86().n_sensors)),
        )

    @classmethod
    def raw(cls) -> Normalization:
        """Change nothing: the inputs that once made training diverge, to see the check refuse."""
        return cls(preset="raw")

    def to_json(self) -> str:
        """Serialise, readable and without rounding."""
        return json.dumps(self.model_dump(), indent=1)


def parse_normalization(text: str | bytes, where: str = "normalisation") -> Normalization:
    """Read a normalisation. Raises: NormalizationError if it is damaged or of another version."""
    return read_model(
        Normalization,
        text,
        lambda problem: NormalizationError(
            "not a normalisation document",
            where=where,
            found=problem.found_in_field,
            expected=problem.expected,
            remedy="Run compute_statistics again; normalisations are never edited by hand",
        ),
    )
