"""The normaliser: the module that carries a normalisation inside the model."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from iceaggr.batches.event_batch import EventBatch
from iceaggr.config import NormalizationConfig
from iceaggr.errors import NormalizationError
from iceaggr.normalization_document import INPUT_FEATURES, Normalization


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


# The check of every batch before it reaches the model: finite, and scaled near one.


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
