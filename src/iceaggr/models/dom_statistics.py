"""Order statistics of the pulses of each DOM: what timing and charge say, in a few numbers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from iceaggr.batches.event_batch import EventBatch
from iceaggr.reconstruction.segments import (
    segment_max,
    segment_mean,
    segment_quantile,
    segment_sum,
)

N_TIMES = 4
N_SHAPES = 8
MIN_CHARGE_PE = 0.01


@dataclass(frozen=True)
class DomStatistics:
    """Order statistics per DOM, in raw units.

    times_ns: (D, 4) float32: first pulse, time of 20 % and of 50 % of the charge, mean by charge
    shapes: (D, 8) float32: log charge, log count, log spread, log duration, share of the charge
        in the first pulse, any non-auxiliary pulse, its share of the charge, efficiency
    charge_pe: (D,) float32;  triggered: (D,) bool, any non-auxiliary pulse
    """

    times_ns: Tensor
    shapes: Tensor
    charge_pe: Tensor
    triggered: Tensor


def dom_statistics(batch: EventBatch) -> DomStatistics:
    """Summarise each DOM's pulses. Times are kept in ns, everything else is near one."""
    dom, n_doms = batch.pulse_dom_idx(), batch.n_doms
    charge = batch.charge_pe.clamp_min(MIN_CHARGE_PE)
    total = segment_sum(charge, dom, n_doms)
    first = batch.time_ns[batch.dom_pulse_offsets[:-1]]
    # relative to the first pulse, so that float32 keeps the nanoseconds
    since = batch.time_ns - first[dom]
    mean = segment_mean(since, dom, n_doms, charge)
    spread = segment_mean(since.square(), dom, n_doms, charge).sqrt()
    last = segment_max(since, dom, n_doms)
    clean = segment_sum(torch.where(batch.auxiliary, 0.0, charge), dom, n_doms)
    quantiles = [segment_quantile(since, charge, share, dom, n_doms) for share in (0.2, 0.5)]
    since_first = torch.stack([torch.zeros_like(mean), *quantiles, mean], dim=-1)
    count = batch.dom_pulse_offsets.diff().float()
    shapes = [
        torch.log10(total),
        torch.log2(count) / 2,
        torch.log1p(spread / 10) / 3,
        torch.log1p(last / 10) / 3,
        charge[batch.dom_pulse_offsets[:-1]] / total,
        (clean > 0).float(),
        clean / total,
        batch.efficiency,
    ]
    times = first[:, None] + since_first
    return DomStatistics(times, torch.stack(shapes, dim=-1), total, clean > 0)


def event_time_ns(batch: EventBatch, statistics: DomStatistics) -> Tensor:
    """Find a robust time of each event: the median first time of its triggered DOMs.

    Events without one use all DOMs. Returns (B,) float32.
    """
    event = batch.dom_event_idx()
    weight = statistics.triggered.float()
    has_any = segment_sum(weight, event, batch.n_events) > 0
    weight = torch.where(has_any[event], weight, torch.ones_like(weight)).clamp_min(1e-6)
    return segment_quantile(statistics.times_ns[:, 0], weight, 0.5, event, batch.n_events)


def event_size(batch: EventBatch, statistics: DomStatistics) -> Tensor:
    """Describe the size of each event: (B, 4) float32.

    Logarithms of DOMs, triggered DOMs and charge, and of the largest charge on one DOM.
    """
    event, n_events = batch.dom_event_idx(), batch.n_events
    triggered = segment_sum(statistics.triggered.float(), event, n_events)
    charge = segment_sum(statistics.charge_pe, event, n_events)
    largest = segment_max(statistics.charge_pe, event, n_events)
    n_doms = batch.event_dom_offsets.diff().float()
    logs = [torch.log10(n_doms), torch.log10(1 + triggered), torch.log10(charge), largest.log10()]
    return torch.stack(logs, dim=-1) - 1
