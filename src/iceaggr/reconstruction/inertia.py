"""Tensor of inertia: the long axis of the charge distribution, with its sign from the times."""

from __future__ import annotations

import torch
from torch import Tensor

from iceaggr.batches.event_batch import EventBatch
from iceaggr.reconstruction.fit_result import FitResult, line_result, pulse_hits
from iceaggr.reconstruction.segments import segment_mean

MIN_SPREAD_M2 = 1e-3


def tensor_of_inertia(batch: EventBatch) -> FitResult:
    """Fit the axis of smallest moment of inertia of the non-auxiliary charge.

    Events without such pulses use all. The fallback direction (ok = False) stands for events on
    one point or with no time order along the axis.
    Source: IceTray tensor-of-inertia documentation; sign from charge-squared weighted times.
    """
    hits = pulse_hits(batch)
    event, n_events = hits.event_idx, hits.n_events
    weight = _clean_charge(batch, event)
    centre = segment_mean(hits.xyz_m, event, n_events, weight)
    dr = hits.xyz_m - centre[event]
    outer = (dr[:, :, None] * dr[:, None, :]).flatten(1)
    spread = segment_mean(outer, event, n_events, weight).view(-1, 3, 3)
    # the smallest moment of inertia lies along the largest spread
    values, vectors = torch.linalg.eigh(spread)
    axis = vectors[:, :, 2]
    time = segment_mean(hits.time_ns, event, n_events, weight)
    dt = hits.time_ns - time[event]
    along = (dr * axis[event]).sum(-1)
    order = segment_mean(along * dt, event, n_events, weight * weight)
    ok = (values[:, 2] > MIN_SPREAD_M2) & (order.abs() > 0)
    return line_result(axis * order.sign()[:, None], centre, time, ok)


def _clean_charge(batch: EventBatch, event: Tensor) -> Tensor:
    """Charge of the non-auxiliary pulses; of all pulses where an event has none. (N,) float64."""
    charge = batch.charge_pe.double().clamp_min(1e-6)
    clean = torch.where(batch.auxiliary, torch.zeros_like(charge), charge)
    has_clean = segment_mean(clean, event, batch.n_events) > 0
    return torch.where(has_clean[event], clean, charge)
