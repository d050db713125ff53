"""Reductions over ragged segments: rows that belong to events or DOMs, without padding or loops.

Rows need not be sorted; `segment` names the segment of each row. Letters: R rows, S segments.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from iceaggr.batches.event_batch import EventBatch, segment_idx


def segment_sum(values: Tensor, segment: Tensor, n_segments: int) -> Tensor:
    """Add up the rows of each segment.

    values: (R, ...) float; segment: (R,) int64. Returns (S, ...), 0 for an empty segment.
    """
    total = values.new_zeros((n_segments, *values.shape[1:]))
    return total.index_add_(0, segment, values)


def segment_sum_rounded_once(values: Tensor, segment: Tensor, n_segments: int) -> Tensor:
    """Add up the rows of each segment in float64 and round only the sums.

    They are then the same for every order of the rows, and on a GPU, where threads add in any
    order, the same again and again; but for one in a hundred million, which lies between two
    numbers.
    values: (R, ...) float32; segment: (R,) int64. Returns (S, ...) float32, 0 for an empty segment.
    """
    return segment_sum(values.double(), segment, n_segments).to(values.dtype)


def segment_mean(
    values: Tensor, segment: Tensor, n_segments: int, weight: Tensor | None = None
) -> Tensor:
    """Average the rows of each segment.

    values: (R, ...) float; segment: (R,) int64; weight: (R,) float >= 0, or None for equal
    weights. Returns (S, ...), 0 for a segment of no weight.
    """
    if weight is None:
        weight = torch.ones_like(segment, dtype=values.dtype)
    norm = segment_sum(weight, segment, n_segments).clamp_min(torch.finfo(values.dtype).tiny)
    shape = (-1,) + (1,) * (values.dim() - 1)
    return segment_sum(values * weight.view(shape), segment, n_segments) / norm.view(shape)


def segment_min(values: Tensor, segment: Tensor, n_segments: int) -> Tensor:
    """Take the smallest row of each segment.

    values: (R,) float; segment: (R,) int64. Returns (S,), +inf for an empty segment.
    """
    start = values.new_full((n_segments,), torch.inf)
    return start.scatter_reduce_(0, segment, values, "amin")


def segment_max(values: Tensor, segment: Tensor, n_segments: int) -> Tensor:
    """Take the largest row of each segment.

    values: (R,) float; segment: (R,) int64. Returns (S,), -inf for an empty segment.
    """
    start = values.new_full((n_segments,), -torch.inf)
    return start.scatter_reduce_(0, segment, values, "amax")


def segment_quantile(
    values: Tensor, weight: Tensor, share: float | Tensor, segment: Tensor, n_segments: int
) -> Tensor:
    """Find, per segment, the smallest value at which a share of the weight is reached.

    values, weight: (R,) float, weight > 0; share: in (0, 1]; segment: (R,) int64.
    Returns (S,) in the dtype of values, 0 for an empty segment.
    """
    by_value = torch.argsort(values, stable=True)
    order = by_value[torch.argsort(segment[by_value], stable=True)]
    segment, values = segment[order], values[order]
    weight = weight[order].double()
    running = weight.cumsum(0)
    total = segment_sum(weight, segment, n_segments)
    before = total.cumsum(0) - total
    reached = running - before[segment] >= share * total[segment] * (1 - 1e-9)
    infinite = torch.full_like(values, torch.inf)
    found = segment_min(torch.where(reached, values, infinite), segment, n_segments)
    return torch.where(total > 0, found, torch.zeros_like(found))


# One order of DOMs, whatever order they came in: sums then round alike, and so does every fit.
#
# A fit of few hits is a long chain of steps, each taken or undone by comparing two sums. Rounding
# that differs in the last digit can decide such a step, and end degrees away.


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
