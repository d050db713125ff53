"""Reductions over ragged segments: rows that belong to events or DOMs, without padding or loops.

Rows need not be sorted; `segment` names the segment of each row. Letters: R rows, S segments.
"""

from __future__ import annotations

import torch
from torch import Tensor


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
