"""Normalisation: raw physical inputs become numbers near one, in one place.

The `Normalization` document says how, per feature; the `Normalizer` module carries it as buffers
inside the model, so that no path (chunked, exported, served) can forget it; `check_inputs` refuses
a batch that is badly scaled all the same.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass, fields
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor, nn

from iceaggr.batches.event_batch import EventBatch
from iceaggr.config import NormalizationConfig
from iceaggr.errors import NormalizationError
from iceaggr.shards.histograms import FeatureSketch
from iceaggr.shards.sketches import Sketch
from iceaggr.validation import first_problem

INPUT_FEATURES = ("time_ns", "charge_pe", "auxiliary", "x_m", "y_m", "z_m", "sensor_idx")
POSITIONS = ("x_m", "y_m", "z_m")
TAIL_SHARE, TAIL_REACH, LOG_REACH = 0.001, 6.0, 9.5


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

        Source: the seed model's input layer: (t - 1e4)/3e4, log10(q)/3, xyz/500, sensor id/5160.
        """
        position = FeatureScaling(scale=500.0)
        return cls(
            preset="seed",
            time_ns=FeatureScaling(centre=1e4, scale=3e4),
            charge_pe=FeatureScaling(transform="log10", scale=3.0),
            x_m=position,
            y_m=position,
            z_m=position,
            sensor_idx=FeatureScaling(scale=5160.0),
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
    try:
        return Normalization.model_validate_json(text)
    except ValidationError as error:
        problem = first_problem(error, Normalization)
        raise NormalizationError(
            "not a normalisation document",
            where=where,
            found=problem.found_in_field,
            expected=problem.expected,
            remedy="Run compute_statistics again; normalisations are never edited by hand",
        ) from None


def fit_normalization(sketch: Sketch, constant_features: Collection[str] = ()) -> Normalization:
    """Fit centre and scale to a sketch of the train split, each event counting equally.

    Time, log10 charge and sensor row: mean, and the standard deviation or, for a heavy tail, a
    sixth of the distance to the 0.1 % quantiles, whichever is larger. The extremes of log10 charge
    stay within 9.5, because a bright event may fill a batch alone. x, y and z have their own means
    but one common scale, so that angles survive. The auxiliary flag becomes -1 or +1: a fitted
    scale would blow up the rarer value.
    constant_features: what this detector does not record; it becomes 0 with scale 1.
    Raises: NormalizationError naming every feature that is missing, not finite or constant.
    """
    check_usable(sketch, constant_features)
    charge, time, row = (sketch.features[f] for f in ("log10_charge", "time_ns", "sensor_idx"))
    spread = sum(sketch.features[axis].std ** 2 for axis in POSITIONS) / len(POSITIONS)
    common_scale = spread**0.5 or 1.0
    positions = {
        axis: FeatureScaling(centre=sketch.features[axis].mean, scale=common_scale)
        for axis in POSITIONS
    }
    flag = sketch.features["auxiliary"]
    return Normalization(
        preset="fitted",
        time_ns=_fit(time),
        charge_pe=_fit(charge, "log10"),
        auxiliary=_fit(flag) if flag.is_constant else FeatureScaling(centre=0.5, scale=0.5),
        sensor_idx=_fit(row),
        **positions,
    )


def _fit(
    feature: FeatureSketch, transform: Literal["identity", "log10"] = "identity"
) -> FeatureScaling:
    if feature.is_constant:
        return FeatureScaling(transform=transform, centre=feature.low)
    tails = (feature.quantile(1 - TAIL_SHARE), feature.quantile(TAIL_SHARE))
    scale = max(feature.std, *(abs(tail - feature.mean) / TAIL_REACH for tail in tails))
    if transform == "log10":
        ends = (feature.low, feature.high)
        scale = max(scale, *(abs(end - feature.mean) / LOG_REACH for end in ends))
    return FeatureScaling(transform=transform, centre=feature.mean, scale=scale)


def check_usable(sketch: Sketch, constant_features: Collection[str] = ()) -> None:
    """Refuse a sketch with an input feature that is missing, not finite or constant.

    Raises: NormalizationError naming each such feature with its figures.
    """
    unknown = sorted(set(constant_features) - set(INPUT_FEATURES))
    if unknown:
        raise NormalizationError(
            "unknown constant feature",
            where="normalization.constant_features",
            found=unknown,
            expected=f"some of {INPUT_FEATURES}",
            remedy="Correct the name",
        )
    problems = []
    for name in INPUT_FEATURES:
        feature = sketch.features["log10_charge" if name == "charge_pe" else name]
        if feature.n_not_finite:
            problem = f"{feature.n_not_finite} of {feature.n_values + feature.n_not_finite} values"
            problems.append(f"{name}: {problem} are not finite or have no logarithm")
        elif feature.n_values == 0:
            problems.append(f"{name}: no values")
        elif feature.is_constant and name not in constant_features:
            problems.append(f"{name}: all {feature.n_values} values are {feature.low:g}")
    if problems:
        raise NormalizationError(
            "features cannot be normalised",
            where=f"statistics of {sketch.n_events} events",
            found="; ".join(problems),
            expected="finite values that vary",
            remedy="Mend the raw data, or name what the detector lacks in "
            "normalization.constant_features",
        )


@dataclass(frozen=True)
class NormalizedInputs:
    """The normalised features of a batch, all float32.

    time_norm, charge_norm, auxiliary_norm: (N,);  xyz_norm: (D, 3);  sensor_norm: (D,)
    """

    time_norm: Tensor
    charge_norm: Tensor
    auxiliary_norm: Tensor
    xyz_norm: Tensor
    sensor_norm: Tensor


class Normalizer(nn.Module):
    """Applies a normalisation; it has no parameters, and its buffers travel with the weights."""

    centre: Tensor
    scale: Tensor
    charge_has_log10: Tensor

    def __init__(self, normalization: Normalization) -> None:
        super().__init__()
        scalings = [normalization.scaling(name) for name in INPUT_FEATURES]
        self.register_buffer("centre", torch.tensor([s.centre for s in scalings]))
        self.register_buffer("scale", torch.tensor([s.scale for s in scalings]))
        log10 = normalization.charge_pe.transform == "log10"
        self.register_buffer("charge_has_log10", torch.tensor(log10))
        self._log10 = log10  # a Python bool, so that the forward pass never waits for the device
        self.register_load_state_dict_post_hook(_read_transform)

    def forward(self, batch: EventBatch) -> NormalizedInputs:
        """Normalise raw inputs in float32; the centre is subtracted first, which keeps every ns.

        A charge of zero or less has no logarithm and becomes infinite or NaN: `check_inputs`
        refuses it. Raises: NormalizationError if the module was cast to another float type.
        """
        if self.scale.dtype != torch.float32:
            raise NormalizationError(
                "normaliser was cast to another float type",
                where="model",
                found=self.scale.dtype,
                expected=torch.float32,
                remedy="Use torch.autocast instead of casting the model: times need 24 bits",
            )
        charge = torch.log10(batch.charge_pe.float()) if self._log10 else batch.charge_pe.float()
        return NormalizedInputs(
            time_norm=self._scaled(batch.time_ns.float(), 0),
            charge_norm=self._scaled(charge, 1),
            auxiliary_norm=self._scaled(batch.auxiliary.float(), 2),
            xyz_norm=(batch.xyz_m.float() - self.centre[3:6]) / self.scale[3:6],
            sensor_norm=self._scaled(batch.sensor_idx.float(), 6),
        )

    def _scaled(self, values: Tensor, position: int) -> Tensor:
        return (values - self.centre[position]) / self.scale[position]


def _read_transform(module: nn.Module, _incompatible: object) -> None:
    assert isinstance(module, Normalizer)
    module._log10 = bool(module.charge_has_log10)


def check_inputs(inputs: NormalizedInputs, batch: EventBatch, config: NormalizationConfig) -> None:
    """Refuse a batch with any value that is not finite, or too many that are far from one.

    One reduction per feature and one transfer from the device while all is well.
    Raises: NormalizationError naming feature, share, worst value and event ids.
    """
    tensors = {f.name: getattr(inputs, f.name) for f in fields(inputs)}
    tensors = {name: values for name, values in tensors.items() if values.numel()}
    extremes = [torch.stack(torch.aminmax(values)) for values in tensors.values()]
    if not extremes or bool((torch.stack(extremes).abs() <= config.max_abs).all()):
        return
    problems = {
        name: problem
        for name, values in tensors.items()
        if (problem := _scaling_problem(values, batch, config))
    }
    if problems:
        raise NormalizationError(
            "inputs are badly scaled or not finite",
            where=", ".join(problems),
            found="; ".join(f"{name} {problem}" for name, problem in problems.items()),
            expected=f"finite, at most {config.max_outlier_share:.2%} beyond {config.max_abs:g}",
            remedy="Normalise with statistics of this data (normalization.preset: fitted)",
        )


def _scaling_problem(values: Tensor, batch: EventBatch, config: NormalizationConfig) -> str:
    """Describe what is wrong with one normalised feature: '' if nothing is."""
    finite = torch.isfinite(values)
    inside = values.abs() <= config.max_abs  # False for NaN
    share = 1 - float(inside.double().mean())
    if bool(finite.all()) and share <= config.max_outlier_share:
        return ""
    guilty = ~finite if not bool(finite.all()) else ~inside
    rows = guilty.reshape(len(values), -1).any(dim=1).nonzero()[:, 0]
    per_pulse = len(values) == batch.n_pulses and values.dim() == 1
    events = batch.dom_event_idx()[batch.pulse_dom_idx()[rows] if per_pulse else rows]
    event_ids = batch.event_id[events.unique()].tolist()
    shown = ", ".join(map(str, event_ids[:5])) + (" ..." if len(event_ids) > 5 else "")
    worst = values.flatten()[values.abs().nan_to_num(nan=torch.inf).argmax()]
    return (
        f"{share:.2%} beyond {config.max_abs:g}, {int((~finite).sum())} not finite, "
        f"worst {float(worst):g}, in {len(event_ids)} events ({shown})"
    )
