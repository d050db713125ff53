"""Line fits: a point that moves through the hits with constant velocity, in closed form."""

from __future__ import annotations

import torch
from torch import Tensor

from iceaggr.batches.event_batch import EventBatch
from iceaggr.reconstruction.fit_result import FitResult, Hits, first_hits, line_result, pulse_hits
from iceaggr.reconstruction.segments import segment_mean, segment_sum

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
    hits = hits.keep(~_is_late(hits))
    weight = torch.ones_like(hits.time_ns)
    for _ in range(N_HUBER_STEPS):
        residual = _residual_m(hits, weight)
        weight = HUBER_M / residual.clamp_min(HUBER_M)
    hits = hits.keep(_residual_m(hits, weight) < RESIDUAL_CUT_M)
    robust = _solve(hits)
    n_hits = segment_sum(torch.ones_like(hits.time_ns), hits.event_idx, hits.n_events)
    use = robust.ok & (n_hits >= 3)
    return choose(use, robust, plain)


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


def _is_late(hits: Hits) -> Tensor:
    """Mark hits much later than a near one: scattered light that only blurs the fit. (R,) bool."""
    order = torch.argsort(hits.event_idx, stable=True)
    event = hits.event_idx[order]
    counts = torch.bincount(event, minlength=hits.n_events)
    starts = counts.cumsum(0) - counts
    late = torch.zeros(len(event), dtype=torch.bool, device=event.device)
    # compare each hit with the k-th of its event, many k at once: the largest event says how many
    longest = int(counts.max()) if len(event) else 0
    xyz, time = hits.xyz_m[order], hits.time_ns[order]
    width = max(1, min(longest, MAX_PAIR_CELLS // max(1, len(event))))
    for first in range(0, longest, width):
        k = torch.arange(first, min(first + width, longest), device=event.device)
        other = (starts[event][:, None] + k).clamp(max=len(event) - 1)
        valid = k < counts[event][:, None]
        near = (xyz[:, None] - xyz[other]).square().sum(-1) < DELAY_RADIUS_M**2
        late |= (valid & near & (time[:, None] - time[other] > DELAY_CUT_NS)).any(1)
    marked = torch.empty_like(late)
    marked[order] = late
    return marked
