"""Likelihood fits: a track from several starting directions, and a point of light."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from iceaggr.batches.event_batch import EventBatch
from iceaggr.reconstruction.fit_result import FitResult
from iceaggr.reconstruction.hypotheses import PointSource, TrackSource
from iceaggr.reconstruction.inertia import tensor_of_inertia
from iceaggr.reconstruction.likelihood import TimedHits, minimise, timed_hits
from iceaggr.reconstruction.line_fit import improved_line_fit, line_fit
from iceaggr.reconstruction.pandel import arrival_table
from iceaggr.reconstruction.segments import (
    segment_mean,
    segment_quantile,
    segment_sum,
    segment_sum_rounded_once,
)
from iceaggr.reconstruction.sensor_order import in_sensor_order

SEARCH_BLUR_NS, FINAL_BLUR_NS = 60.0, 20.0
N_SEARCH_STEPS, N_FINAL_STEPS, N_POINT_STEPS = 6, 10, 10
MIN_HITS = 5
EARLY_SHARE = 0.35
"""Scattered light only comes later: a source starts in time with this quantile of its hits."""


@dataclass(frozen=True)
class CentredHits:
    """First pulses relative to the charge centre, (B, 3) m, and to a robust time, (B,) ns."""

    hits: TimedHits
    centre_m: Tensor
    time_zero_ns: Tensor


def likelihood_fit(batch: EventBatch) -> FitResult:
    """Fit a muon track to the first pulses by the blurred Pandel likelihood.

    Starts at the line fits and the inertia axis, both ways; a coarse search (60 ns blur) picks
    the best start and a fine one (20 ns) finishes. Events with fewer than five of the hits that
    `timed_hits` takes have ok = False and keep the improved line fit.
    Source: AMANDA collaboration 2004, "Muon track reconstruction and data selection techniques".
    """
    batch = in_sensor_order(batch)
    plain = line_fit(batch)
    improved = improved_line_fit(batch, plain)
    return fit_track(centred_hits(batch), improved, [plain, tensor_of_inertia(batch)])


def centred_hits(batch: EventBatch) -> CentredHits:
    """Prepare what the likelihood fits look at."""
    event, n_events = batch.dom_event_idx(), batch.n_events
    first = batch.time_ns[batch.dom_pulse_offsets[:-1]]
    # auxiliary charge counts only where there is no other
    charge = torch.where(batch.auxiliary, 1e-3, 1.0) * batch.charge_pe.clamp(0.05, 30.0)
    weight = segment_sum_rounded_once(charge, batch.pulse_dom_idx(), batch.n_doms).clamp(max=30.0)
    # float32 would lose millimetres, and others with every order of the DOMs
    centre = segment_mean(batch.xyz_m.double(), event, n_events, weight.double()).float()
    time_zero = segment_quantile(first, weight, 0.5, event, n_events)
    return CentredHits(timed_hits(batch, centre, time_zero), centre, time_zero)


def fit_track(centred: CentredHits, first: FitResult, others: list[FitResult]) -> FitResult:
    """Fit tracks from the directions of other fits, and from the reverse of the first and last.

    The first fit stands where there are fewer than five hits.
    """
    directions = [first.direction, *(fit.direction for fit in others)]
    starts = torch.stack([*directions, -directions[0], -directions[-1]])
    n_starts, n_events = starts.shape[:2]
    many = centred.hits.repeated(n_starts)
    source = _track_through_centre(many, -starts.flatten(0, 1))
    device = starts.device
    found, cost = minimise(source, many, arrival_table(SEARCH_BLUR_NS, device), N_SEARCH_STEPS)
    best = cost.view(n_starts, n_events).argmin(0) * n_events
    best = best + torch.arange(n_events, device=best.device)
    table = arrival_table(FINAL_BLUR_NS, device)
    final, _ = minimise(found.take(best), centred.hits, table, N_FINAL_STEPS)
    ok = (_n_hits(centred.hits) >= MIN_HITS) & torch.isfinite(final.travel).all(-1)
    return FitResult(
        torch.where(ok[:, None], -final.travel, first.direction),
        torch.where(ok[:, None], final.position_m + centred.centre_m, first.position_m),
        torch.where(ok, final.time_ns + centred.time_zero_ns, first.time_ns),
        ok,
    )


def fit_point(centred: CentredHits) -> Tensor:
    """Fit a point source of light to the first pulses: (B, 3) position in m.

    Events that fix no point keep their charge centre.
    """
    hits, zero = centred.hits, torch.zeros_like(centred.centre_m)
    source = PointSource(zero, zero[:, 0], zero)
    source = PointSource(zero, _early(hits, source.geometry(hits.xyz_m, hits.fit).arrival_ns), zero)
    table = arrival_table(SEARCH_BLUR_NS, zero.device)
    found, _ = minimise(source, hits, table, N_POINT_STEPS)
    ok = torch.isfinite(found.position_m).all(-1, keepdim=True)
    return centred.centre_m + torch.where(ok, found.position_m, zero)


def _track_through_centre(hits: TimedHits, travel: Tensor) -> TrackSource:
    zero = torch.zeros_like(travel)
    source = TrackSource(travel, zero, zero[:, 0], zero)
    early = _early(hits, source.geometry(hits.xyz_m, hits.fit).arrival_ns)
    return TrackSource(travel, zero, early, zero)


def _early(hits: TimedHits, arrival_ns: Tensor) -> Tensor:
    """Find the time of a source that lights most of its likely signal in time. (K,) ns."""
    delay = hits.time_ns - arrival_ns
    return segment_quantile(delay, 1 - hits.noise, EARLY_SHARE, hits.fit, hits.n_fits)


def _n_hits(hits: TimedHits) -> Tensor:
    return segment_sum(torch.ones_like(hits.time_ns), hits.fit, hits.n_fits)
