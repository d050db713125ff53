"""What a classical fit returns, and the hits that fits look at."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from iceaggr.batches.event_batch import EventBatch

FALLBACK_DIRECTION = (0.0, 0.0, 1.0)
"""Straight above, where most of the events that a detector records come from."""


@dataclass(frozen=True)
class FitResult:
    """One straight line per event.

    direction:  (B, 3) float32 unit vector to the origin; the particle travels the other way
    position_m: (B, 3) float32, a point on the line
    time_ns:    (B,)   float32, when the particle passes that point
    ok:         (B,)   bool, False where the hits fix no direction and the fallback stands
    """

    direction: Tensor
    position_m: Tensor
    time_ns: Tensor
    ok: Tensor

    @property
    def n_failed(self) -> int:
        """Count the events that carry the fallback direction."""
        return int((~self.ok).sum())


@dataclass(frozen=True)
class Hits:
    """Hits of a batch, flat: pulses, or first pulses of DOMs.

    event_idx: (R,) int64; xyz_m: (R, 3) float64; time_ns: (R,) float64; n_events: B
    """

    event_idx: Tensor
    xyz_m: Tensor
    time_ns: Tensor
    n_events: int

    def keep(self, chosen: Tensor) -> Hits:
        """Select hits by a (R,) bool mask."""
        return Hits(self.event_idx[chosen], self.xyz_m[chosen], self.time_ns[chosen], self.n_events)


def pulse_hits(batch: EventBatch, chosen: Tensor | None = None) -> Hits:
    """Take every pulse, or every chosen one, as a hit. chosen: (N,) bool."""
    dom, time_ns = batch.pulse_dom_idx(), batch.time_ns
    if chosen is not None:
        dom, time_ns = dom[chosen], time_ns[chosen]
    return Hits(
        batch.dom_event_idx()[dom],
        batch.xyz_m.double()[dom],
        time_ns.double(),
        batch.n_events,
    )


def first_hits(batch: EventBatch, chosen: Tensor) -> Hits:
    """Take the first chosen pulse of each DOM that has one.

    chosen: (N,) bool. Returns at most one hit per DOM.
    """
    dom = batch.pulse_dom_idx()[chosen]
    # pulses are sorted by time within a DOM, so a change of DOM marks its first chosen pulse
    first = torch.ones_like(dom, dtype=torch.bool)
    first[1:] = dom[1:] != dom[:-1]
    dom = dom[first]
    return Hits(
        batch.dom_event_idx()[dom],
        batch.xyz_m.double()[dom],
        batch.time_ns[chosen][first].double(),
        batch.n_events,
    )


def line_result(velocity: Tensor, centre: Tensor, time: Tensor, ok: Tensor) -> FitResult:
    """Turn a velocity into a result, with the fallback where it is too small to have a direction.

    velocity: (B, 3) m/ns; centre: (B, 3) m; time: (B,) ns; ok: (B,) bool.
    """
    speed = torch.linalg.vector_norm(velocity, dim=-1)
    ok = ok & (speed > 1e-6) & torch.isfinite(speed)
    unit = -velocity / torch.where(ok, speed, torch.ones_like(speed))[:, None]
    fallback = unit.new_tensor(FALLBACK_DIRECTION).expand_as(unit)
    return FitResult(
        torch.where(ok[:, None], unit, fallback).float(), centre.float(), time.float(), ok
    )
