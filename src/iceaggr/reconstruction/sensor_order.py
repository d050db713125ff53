"""One order of DOMs, whatever order they came in: sums then round alike, and so does every fit.

A fit of few hits is a long chain of steps, each taken or undone by comparing two sums. Rounding
that differs in the last digit can decide such a step, and end degrees away.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from iceaggr.batches.event_batch import EventBatch, segment_idx


def in_sensor_order(batch: EventBatch) -> EventBatch:
    """Sort the DOMs of each event by sensor, with their pulses.

    A batch from shards is in this order already and comes back equal in every bit. No event
    changes its place, nor any pulse within its DOM.
    """
    # one key of two numbers: neither has more than 31 bits
    rows = torch.argsort((batch.dom_event_idx() << 32) + batch.sensor_idx, stable=True)
    counts = batch.dom_pulse_offsets.diff()[rows]
    offsets = torch.cat([batch.dom_pulse_offsets[:1], counts.cumsum(0)])
    pulses = _pulse_rows(batch, rows, offsets)
    return replace(
        batch,
        sensor_idx=batch.sensor_idx[rows],
        xyz_m=batch.xyz_m[rows],
        efficiency=batch.efficiency[rows],
        dom_pulse_offsets=offsets,
        time_ns=batch.time_ns[pulses],
        charge_pe=batch.charge_pe[pulses],
        auxiliary=batch.auxiliary[pulses],
    )


def _pulse_rows(batch: EventBatch, doms: Tensor, offsets: Tensor) -> Tensor:
    """Find the pulses of DOMs in a new order: (N,) int64 rows of the batch.

    doms: (D,) int64, rows of the batch; offsets: (D+1,) int64, where their pulses go.
    """
    shift = (batch.dom_pulse_offsets[:-1][doms] - offsets[:-1])[
        segment_idx(offsets, batch.n_pulses)
    ]
    return torch.arange(batch.n_pulses, device=offsets.device) + shift
