"""The check of every batch before it reaches the model: finite, and scaled near one."""

from __future__ import annotations

from dataclasses import fields

import torch
from torch import Tensor

from iceaggr.batches.event_batch import EventBatch
from iceaggr.config import NormalizationConfig
from iceaggr.errors import NormalizationError
from iceaggr.normalization.normalizer import NormalizedInputs


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
