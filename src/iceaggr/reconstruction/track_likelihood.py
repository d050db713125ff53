"""The likelihood fit of a track from several starting directions."""

from __future__ import annotations

import torch
from torch import Tensor

from iceaggr.batches.event_batch import EventBatch
from iceaggr.reconstruction.fit_result import FitResult
from iceaggr.reconstruction.hypotheses import PointSource, TrackSource
from iceaggr.reconstruction.inertia import tensor_of_inertia
from iceaggr.reconstruction.likelihood import TimedHits, minimise, timed_hits
from iceaggr.reconstruction.line_fit import improved_line_fit, line_fit
from iceaggr.reconstruction.pandel import arrival_table
from iceaggr.reconstruction.segments import segment_mean, segment_quantile, segment_sum

SEARCH_BLUR_NS, FINAL_BLUR_NS = 60.0, 12.0
N_SEARCH_STEPS, N_FINAL_STEPS = 6, 10
N_POINT_STEPS = 10
MIN_HITS = 5


def likelihood_fit(batch: EventBatch) -> FitResult:
    """Fit a muon track to the first pulses by the blurred Pandel likelihood.

    Starts at the line fits and the inertia axis, both ways; a coarse search (60 ns blur) picks
    the best start and a fine one (12 ns) finishes. Events with fewer than five DOMs have ok =
    False and keep the improved line fit.
    Source: AMANDA collaboration 2004, "Muon track reconstruction and data selection techniques".
    """
    centre, time_zero, hits = prepared_hits(batch)
    improved = improved_line_fit(batch)
    starts = [improved.direction, line_fit(batch).direction, tensor_of_inertia(batch).direction]
    starts += [-starts[0], -starts[2]]
    return fit_from(batch, torch.stack(starts), improved)


def prepared_hits(batch: EventBatch) -> tuple[Tensor, Tensor, TimedHits]:
    """Give the charge centre (B, 3), a robust time (B,) and hits relative to both."""
    first = batch.time_ns[batch.dom_pulse_offsets[:-1]]
    event, n_events = batch.dom_event_idx(), batch.n_events
    dom = batch.pulse_dom_idx()
    charge = torch.where(batch.auxiliary, 1e-3, 1.0) * batch.charge_pe.clamp(0.05, 30.0)
    weight = segment_sum(charge, dom, batch.n_doms).clamp(max=30.0)
    centre = segment_mean(batch.xyz_m, event, n_events, weight)
    time_zero = segment_quantile(first, weight, 0.5, event, n_events)
    return centre, time_zero, timed_hits(batch, centre, time_zero)


def fit_from(batch: EventBatch, starts: Tensor, fallback: FitResult) -> FitResult:
    """Fit tracks from several starting directions to the origin, (S, B, 3)."""
    centre, time_zero, hits = prepared_hits(batch)
    n_starts, n_events = starts.shape[:2]
    many = hits.repeated(n_starts)
    source = _start(many, -starts.flatten(0, 1))
    found, cost = minimise(source, many, arrival_table(SEARCH_BLUR_NS), N_SEARCH_STEPS)
    best = cost.view(n_starts, n_events).argmin(0) * n_events
    best = best + torch.arange(n_events, device=best.device)
    assert isinstance(found, TrackSource)
    chosen = TrackSource(
        found.travel[best], found.position_m[best], found.time_ns[best], found.start_m[best]
    )
    final, cost = minimise(chosen, hits, arrival_table(FINAL_BLUR_NS), N_FINAL_STEPS)
    assert isinstance(final, TrackSource)
    n_hits = segment_sum(torch.ones_like(hits.time_ns), hits.fit, n_events)
    ok = (n_hits >= MIN_HITS) & torch.isfinite(final.travel).all(-1)
    return FitResult(
        torch.where(ok[:, None], -final.travel, fallback.direction),
        torch.where(ok[:, None], final.position_m + centre, fallback.position_m),
        torch.where(ok, final.time_ns + time_zero, fallback.time_ns),
        ok,
    )


def _start(hits: TimedHits, travel: Tensor) -> TrackSource:
    """Put tracks through the charge centre, in time with the median of the likely signal."""
    zero = torch.zeros_like(travel)
    source = TrackSource(travel, zero, zero[:, 0], zero)
    geometry = source.geometry(hits.xyz_m, hits.fit)
    early = segment_quantile(
        hits.time_ns - geometry.arrival_ns, 1 - hits.noise, 0.35, hits.fit, hits.n_fits
    )
    return TrackSource(travel, zero, early, zero)


def point_fit(batch: EventBatch) -> tuple[Tensor, Tensor]:
    """Fit a point source of light to the first pulses: (B, 3) position in m, (B,) time in ns."""
    centre, time_zero, hits = prepared_hits(batch)
    zero = torch.zeros_like(centre)
    source = PointSource(zero, zero[:, 0], zero)
    geometry = source.geometry(hits.xyz_m, hits.fit)
    early = segment_quantile(
        hits.time_ns - geometry.arrival_ns, 1 - hits.noise, 0.35, hits.fit, hits.n_fits
    )
    found, _ = minimise(
        PointSource(zero, early, zero), hits, arrival_table(SEARCH_BLUR_NS), N_POINT_STEPS
    )
    assert isinstance(found, PointSource)
    return found.position_m + centre, found.time_ns + time_zero
