"""Line fits: a point that moves through the hits with constant velocity, in closed form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from iceaggr.batches.event_batch import EventBatch
from iceaggr.reconstruction.segments import segment_mean, segment_quantile, segment_sum

# What a classical fit returns, and the hits that fits look at.

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


# Tensor of inertia: the long axis of the charge distribution, with its sign from the times.

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


DELAY_CUT_NS = 778.0
DELAY_RADIUS_M = 156.0
HUBER_M = 153.0
RESIDUAL_CUT_M = 116.0
N_HUBER_STEPS = 8
MAX_PAIR_CELLS = 1_000_000


def line_fit(batch: EventBatch) -> FitResult:
    """Fit a line to the triggering pulses with equal weights, or to all where those fix no line.

    Auxiliary pulses are mostly noise, and the plain fit has no defence against noise: with them it
    is hardly better than a guess, a straw man rather than a baseline.
    Fallback direction (ok = False) for events whose pulses share one time or one position.
    Source: IceTray linefit documentation, v = cov(r, t) / var(t).
    """
    triggering = _solve(pulse_hits(batch, ~batch.auxiliary))
    return choose(triggering.ok, triggering, _solve(pulse_hits(batch)))


def charge_weighted_line_fit(batch: EventBatch) -> FitResult:
    """Fit a line to the triggering pulses, each with its charge as weight.

    Events that it does not solve have the line fit of equal weights.
    Source: as `line_fit`, with the moments weighted.
    """
    triggering = ~batch.auxiliary
    charge = batch.charge_pe[triggering].double().clamp_min(1e-6)
    weighted = _solve(pulse_hits(batch, triggering), charge)
    return choose(weighted.ok, weighted, line_fit(batch))


def improved_line_fit(batch: EventBatch, plain: FitResult | None = None) -> FitResult:
    """Fit a line robustly to the first triggering pulse of each DOM.

    Late hits are dropped (778 ns after another within 156 m), a Huber fit (153 m) finds the
    outliers, and the rest (residual below 116 m) is fitted again. Events with fewer than three
    such DOMs use the plain fit.
    plain: `line_fit` of this batch, if it was computed before.
    Source: IceTray improved linefit documentation.
    """
    if plain is None:
        plain = line_fit(batch)
    hits = first_hits(batch, ~batch.auxiliary)
    hits = hits.keep(~_beside(hits, _late))
    weight = torch.ones_like(hits.time_ns)
    for _ in range(N_HUBER_STEPS):
        residual = _residual_m(hits, weight)
        weight = HUBER_M / residual.clamp_min(HUBER_M)
    hits = hits.keep(_residual_m(hits, weight) < RESIDUAL_CUT_M)
    robust = _solve(hits)
    n_hits = segment_sum(torch.ones_like(hits.time_ns), hits.event_idx, hits.n_events)
    use = robust.ok & (n_hits >= 3)
    return choose(use, robust, plain)


# Hit cleaning with an ensemble of fits: what no single cut decides, several decide together.

NEAR_M, NEAR_NS = 150.0, 1000.0
"""A hit with no other so near in place and time counts as noise. Source: IceTray seededRTCleaning,
its usual R and T."""
WINDOWS_NS = (1500.0, 1000.0)
"""Around the median time of the hits: a muon crosses 300 m in the second."""
EARLY_CUT = 0.7
"""Share of the hits, the earliest first, that is fitted without the later ones."""
BRIGHT_PE = 1.0


def ensemble_fit(batch: EventBatch, plain: FitResult | None = None) -> FitResult:
    """Average the directions of line fits to five cleaned selections of the triggering hits.

    Hits are first pulses of DOMs with another hit near in place and time, and no near one long
    before. The selections are all of them, weighted by charge; those within 1500 ns and 1000 ns of
    their median time; the earliest 70 %; and those above one photo-electron. A selection that fixes
    no line counts with the first of these fits, and that with the plain one.
    plain: `line_fit` of this batch, if it was computed before.
    Source: robust line fits over cuts on hits, as public notebooks of the IceCube competition
    combine them; the cuts were chosen on simulated events (docs/LOG.md).
    """
    if plain is None:
        plain = line_fit(batch)
    clean, *selected = _selected_fits(batch)
    clean = choose(clean.ok, clean, plain)
    fits = [clean, *(choose(fit.ok, fit, clean) for fit in selected)]
    total = torch.stack([fit.direction.double() for fit in fits]).sum(0)
    length = torch.linalg.vector_norm(total, dim=-1)
    ok = torch.stack([fit.ok for fit in fits]).any(0) & (length > 1e-6)
    mean = FitResult(
        (total / length.clamp_min(1e-6)[:, None]).float(), clean.position_m, clean.time_ns, ok
    )
    return choose(ok, mean, plain)


def _selected_fits(batch: EventBatch) -> list[FitResult]:
    hits = first_hits(batch, ~batch.auxiliary)
    charge = _dom_charge(batch)
    # lonely hits go first: an early one would make every later one of its neighbourhood late
    near = _beside(hits, _near)
    hits, charge = hits.keep(near), charge[near]
    in_time = ~_beside(hits, _late)
    hits, charge = hits.keep(in_time), charge[in_time]
    event, one = hits.event_idx, torch.ones_like(charge)
    median, early = (
        segment_quantile(hits.time_ns, one, share, event, hits.n_events)[event]
        for share in (0.5, EARLY_CUT)
    )
    off = (hits.time_ns - median).abs()
    chosen = [*(off < window for window in WINDOWS_NS), hits.time_ns <= early, charge > BRIGHT_PE]
    return [_solve(hits, charge), *(_solve(hits.keep(kept)) for kept in chosen)]


def _dom_charge(batch: EventBatch) -> Tensor:
    """Add up the triggering charge of each DOM that has any, as `first_hits` orders them."""
    dom = batch.pulse_dom_idx()[~batch.auxiliary]
    charge = batch.charge_pe[~batch.auxiliary].double().clamp_min(1e-6)
    n_pulses = torch.bincount(dom, minlength=batch.n_doms)
    return segment_sum(charge, dom, batch.n_doms)[n_pulses > 0]


def choose(use_first: Tensor, first: FitResult, second: FitResult) -> FitResult:
    """Take the first result where the mask says so, else the second. use_first: (B,) bool."""
    return FitResult(
        torch.where(use_first[:, None], first.direction, second.direction),
        torch.where(use_first[:, None], first.position_m, second.position_m),
        torch.where(use_first, first.time_ns, second.time_ns),
        torch.where(use_first, first.ok, second.ok),
    )


def _moments(hits: Hits, weight: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weighted mean position and time, velocity and variance of time, all per event."""
    event, n_events = hits.event_idx, hits.n_events
    centre = segment_mean(hits.xyz_m, event, n_events, weight)
    time = segment_mean(hits.time_ns, event, n_events, weight)
    # centred before squaring: times near 1e4 ns would lose the digits that matter
    dt = hits.time_ns - time[event]
    dr = hits.xyz_m - centre[event]
    variance = segment_mean(dt * dt, event, n_events, weight)
    covariance = segment_mean(dr * dt[:, None], event, n_events, weight)
    return centre, time, covariance / variance.clamp_min(1e-6)[:, None], variance


def _solve(hits: Hits, weight: Tensor | None = None) -> FitResult:
    centre, time, velocity, variance = _moments(hits, weight)
    return line_result(velocity, centre, time, variance > 1e-6)


def _residual_m(hits: Hits, weight: Tensor) -> Tensor:
    centre, time, velocity, _ = _moments(hits, weight)
    event = hits.event_idx
    predicted = centre[event] + velocity[event] * (hits.time_ns - time[event])[:, None]
    return torch.linalg.vector_norm(hits.xyz_m - predicted, dim=-1)


Condition = Callable[[Tensor, Tensor], Tensor]
"""Of a hit and another: squared distance in m2 and time of the hit minus the other's in ns."""


def _late(square_m2: Tensor, later_ns: Tensor) -> Tensor:
    return (square_m2 < DELAY_RADIUS_M**2) & (later_ns > DELAY_CUT_NS)


def _near(square_m2: Tensor, later_ns: Tensor) -> Tensor:
    return (square_m2 < NEAR_M**2) & (later_ns.abs() < NEAR_NS)


def _beside(hits: Hits, condition: Condition) -> Tensor:
    """Mark hits that meet a condition with any other of their event. (R,) bool."""
    order = torch.argsort(hits.event_idx, stable=True)
    event = hits.event_idx[order]
    counts = torch.bincount(event, minlength=hits.n_events)
    starts = counts.cumsum(0) - counts
    row = torch.arange(len(event), device=event.device)[:, None]
    found = torch.zeros(len(event), dtype=torch.bool, device=event.device)
    # compare each hit with the k-th of its event, many k at once: the largest event says how many
    longest = int(counts.max()) if len(event) else 0
    xyz, time = hits.xyz_m[order], hits.time_ns[order]
    width = max(1, min(longest, MAX_PAIR_CELLS // max(1, len(event))))
    for first in range(0, longest, width):
        k = torch.arange(first, min(first + width, longest), device=event.device)
        other = (starts[event][:, None] + k).clamp(max=len(event) - 1)
        valid = (k < counts[event][:, None]) & (other != row)
        square = (xyz[:, None] - xyz[other]).square().sum(-1)
        found |= (valid & condition(square, time[:, None] - time[other])).any(1)
    marked = torch.empty_like(found)
    marked[order] = found
    return marked
