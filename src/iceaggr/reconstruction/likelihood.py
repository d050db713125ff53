"""Likelihood of first-pulse times, and its maximisation for thousands of events at once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations_with_replacement
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from scipy.signal import fftconvolve
from scipy.special import gammainc
from torch import Tensor

from iceaggr.batches.event_batch import EventBatch
from iceaggr.detector import Medium
from iceaggr.reconstruction.hypotheses import (
    EFFECTIVE_OFFSET_M,
    EFFECTIVE_SLOPE,
    PointSource,
    Source,
    TrackSource,
)
from iceaggr.reconstruction.line_fit import (
    FitResult,
    improved_line_fit,
    line_fit,
    tensor_of_inertia,
)
from iceaggr.reconstruction.segments import (
    in_sensor_order,
    segment_mean,
    segment_quantile,
    segment_sum,
    segment_sum_rounded_once,
)

# Arrival times of scattered light: the Pandel density blurred by a Gaussian, as a table.
#
# A delay t behind unscattered light, seen at an effective distance d, follows a Gamma distribution
# whose constants are the medium's: in ice of shape d / 33.3 m and rate 1/557 ns + c_ice / 98 m. The
# table holds log density, log survival and their derivatives on a grid that is fine near t = 0,
# where the density rises within nanoseconds. Source: D. Pandel 1996; N. van Eijndhoven et al. 2007
# for the Gaussian blur, here done numerically.

TIME_KNEE_NS, DISTANCE_KNEE_M = 20.0, 20.0
"""Where the grid of the table turns from even to logarithmic steps: even in asinh(t / knee)."""
TIME_STEP, DISTANCE_STEP = 0.06, 0.12
LAST_NS, FURTHEST_M = 6000, 500.0
LOWEST_LOG = -40.0
"""Lowest log density per ns: what lies below is rounding of the convolution."""
N_COLUMNS = 6
CPU = torch.device("cpu")


@dataclass(frozen=True)
class ArrivalTerms:
    """Log density and survival of delays, with derivatives, each (R,) float32.

    log_density per ns; log_survival; *_by_ns, *_by_m: derivatives by delay and by distance
    """

    log_density: Tensor
    density_by_ns: Tensor
    density_by_m: Tensor
    log_survival: Tensor
    survival_by_ns: Tensor
    survival_by_m: Tensor


@dataclass(frozen=True)
class ArrivalTable:
    """Bilinear table over asinh(t / 20 ns) and asinh(d / 20 m), of one medium.

    values: (T * M, 6) float32
    """

    values: Tensor
    first_u: float
    n_times: int
    n_distances: int
    medium: Medium

    def lookup(self, delay_ns: Tensor, distance_m: Tensor) -> ArrivalTerms:
        """Interpolate. delay_ns, distance_m: (R,) float32; beyond the table its edge holds."""
        u = (torch.asinh(delay_ns / TIME_KNEE_NS) - self.first_u) / TIME_STEP
        w = torch.asinh(distance_m / DISTANCE_KNEE_M) / DISTANCE_STEP
        u = u.clamp(0, self.n_times - 1.001)
        w = w.clamp(0, self.n_distances - 1.001)
        row, column = u.floor(), w.floor()
        along, across = (u - row)[:, None], (w - column)[:, None]
        corner = (row * self.n_distances + column).long()
        low = torch.lerp(self.values[corner], self.values[corner + 1], across)
        corner = corner + self.n_distances
        high = torch.lerp(self.values[corner], self.values[corner + 1], across)
        return ArrivalTerms(*torch.lerp(low, high, along).unbind(-1))


@cache
def arrival_table(blur_ns: float, medium: Medium, device: torch.device = CPU) -> ArrivalTable:
    """Build the table for a Gaussian blur and a medium, once per process and device.

    blur_ns: photomultiplier jitter and what the medium's constants do not know; large for a first
    search.
    """
    if device != CPU:
        table = arrival_table(blur_ns, medium, CPU)
        return replace(table, values=table.values.to(device))
    first_u = float(np.arcsinh(-6 * blur_ns / TIME_KNEE_NS))
    n_times = int((np.arcsinh(LAST_NS / TIME_KNEE_NS) - first_u) / TIME_STEP) + 1
    n_distances = int(np.arcsinh(FURTHEST_M / DISTANCE_KNEE_M) / DISTANCE_STEP) + 1
    times = TIME_KNEE_NS * np.sinh(first_u + TIME_STEP * np.arange(n_times))
    distances = DISTANCE_KNEE_M * np.sinh(DISTANCE_STEP * np.arange(n_distances))
    logs = np.stack(
        [_log_curves(times, d, blur_ns, medium) for d in distances.clip(min=1.0)], axis=1
    )
    columns = []
    for name in range(2):
        values = logs[..., name]
        by_time = np.gradient(values, times, axis=0)
        by_distance = np.gradient(values, distances, axis=1)
        columns += [values, by_time, by_distance]
    rows = np.stack(columns, axis=-1).reshape(-1, N_COLUMNS)
    table_rows = torch.from_numpy(rows.astype(np.float32))
    return ArrivalTable(table_rows, first_u, n_times, n_distances, medium)


def _log_curves(
    times: npt.NDArray[np.float64], distance_m: float, blur_ns: float, medium: Medium
) -> npt.NDArray[np.float64]:
    """Compute log density and log survival at some delays: (T, 2)."""
    edges = np.arange(0, LAST_NS + 2.0)
    # masses of 1 ns bins: exact also where the density itself diverges at zero delay
    mass = np.diff(gammainc(distance_m / medium.scattering_m, medium.delay_rate * edges))
    reach = int(7 * blur_ns)
    offsets = np.arange(-reach, reach + 1.0)
    kernel = np.exp(-0.5 * (offsets / blur_ns) ** 2)
    density = fftconvolve(mass, kernel / kernel.sum()).clip(min=1e-17)
    grid = offsets[0] + 0.5 + np.arange(len(density))
    survival = 1 - np.cumsum(density) / density.sum() + density / density.sum() / 2
    log_survival = np.log(survival.clip(min=1e-12))
    log_density = np.log(density).clip(min=LOWEST_LOG)
    return np.stack(
        [np.interp(times, grid, log_density), np.interp(times, grid, log_survival)], axis=-1
    )


SourceT = TypeVar("SourceT", bound=Source)

NOISE_SHARE = {"triggered": 0.2, "auxiliary": 0.97}
"""Share of first pulses that the hypothesis does not explain, set higher than the physical noise:
of DOMs with a pulse that took part in the trigger, and of others."""
NOISE_WINDOW_NS = 5000.0
"""Time over which such pulses are spread evenly."""
MAX_PHOTONS = 4.0
"""Photo-electrons on a DOM that count at most, so that no bright DOM rules the fit."""
MIN_TRIGGERED = 3
"""Events with fewer DOMs that took part in the trigger are fitted to all of their DOMs."""
RANGE_M = 300.0
"""Light falls by e over this distance: of two sources that fit the times, the nearer wins."""


@dataclass(frozen=True)
class TimedHits:
    """What a likelihood looks at: the first pulse of each DOM; all but fit are float32.

    fit: (R,) int64, the fit each hit belongs to; xyz_m: (R, 3) relative to the event's centre
    time_ns: (R,) relative to the event's time; noise: (R,) prior share of noise
    photons: (R,) photo-electrons whose first one this is, at least 1;  n_fits: K
    """

    fit: Tensor
    xyz_m: Tensor
    time_ns: Tensor
    noise: Tensor
    photons: Tensor
    n_fits: int

    def repeated(self, times: int) -> TimedHits:
        """Give every event several fits: fit number = start * B + event."""
        shift = torch.arange(times, device=self.fit.device).repeat_interleave(len(self.fit))
        return TimedHits(
            self.fit.repeat(times) + shift * self.n_fits,
            self.xyz_m.repeat(times, 1),
            self.time_ns.repeat(times),
            self.noise.repeat(times),
            self.photons.repeat(times),
            self.n_fits * times,
        )


@dataclass(frozen=True)
class Value:
    """Negative log-likelihood with prior (K,), gradient (K, P) and curvature (K, P, P)."""

    cost: Tensor
    gradient: Tensor
    curvature: Tensor


def evaluate(source: Source, hits: TimedHits, table: ArrivalTable) -> Value:
    """Compute cost, gradient and curvature of all fits.

    The curvature is the sum of squared scores, which is never negative.
    Source: Berndt, Hall, Hall and Hausman 1974.
    """
    geometry = source.geometry(hits.xyz_m, hits.fit, table.medium)
    delay = hits.time_ns - source.time_ns[hits.fit] - geometry.arrival_ns
    log_likelihood, by_ns, by_m = _light(delay, geometry.distance_m, hits, table)
    # a later source or a longer way means a smaller delay
    scores = by_ns[:, None] * -geometry.arrival_by + by_m[:, None] * geometry.distance_by
    n_parameters = scores.shape[1]
    # squares of scores are symmetric: the upper triangle says it all
    squares = [scores[:, k:] * scores[:, k : k + 1] for k in range(n_parameters)]
    columns = torch.cat([-log_likelihood[:, None], -scores, *squares], dim=1)
    # which steps are taken hangs on these sums, so their rounding must not hang on the order
    sums = segment_sum_rounded_once(columns, hits.fit, hits.n_fits)
    pulls, inverse_width = source.prior()
    curvature = _symmetric(sums[:, 1 + n_parameters :], n_parameters)
    return Value(
        sums[:, 0] + 0.5 * pulls.square().sum(-1),
        sums[:, 1 : 1 + n_parameters] + pulls * inverse_width,
        curvature + torch.diag(inverse_width.square()),
    )


def _symmetric(triangle: Tensor, n: int) -> Tensor:
    """Complete symmetric matrices. triangle: (K, n (n + 1) / 2), upper rows. Returns (K, n, n)."""
    place = [[0] * n for _ in range(n)]
    for number, (row, column) in enumerate(combinations_with_replacement(range(n), 2)):
        place[row][column] = place[column][row] = number
    entries = triangle.unbind(-1)
    return torch.stack([entries[k] for row in place for k in row], dim=-1).view(-1, n, n)


def _light(
    delay_ns: Tensor, distance_m: Tensor, hits: TimedHits, table: ArrivalTable
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute log-likelihoods and their derivatives by delay and by distance, each (R,).

    The density of the first of n photons is n p(t) S(t)^(n-1); noise adds a flat share.
    """
    terms = table.lookup(delay_ns, EFFECTIVE_SLOPE * distance_m + EFFECTIVE_OFFSET_M)
    others = hits.photons - 1
    log_signal = terms.log_density + others * terms.log_survival + hits.photons.log()
    signal = (1 - hits.noise) * log_signal.exp()
    total = signal + hits.noise / NOISE_WINDOW_NS
    share = signal / total
    by_ns = share * (terms.density_by_ns + others * terms.survival_by_ns)
    by_m = share * (terms.density_by_m + others * terms.survival_by_m) * EFFECTIVE_SLOPE
    near = (1 - hits.noise) / RANGE_M
    return total.log() - near * distance_m, by_ns, by_m - near


def minimise(
    source: SourceT, hits: TimedHits, table: ArrivalTable, n_steps: int
) -> tuple[SourceT, Tensor]:
    """Minimise the cost by damped Newton steps, each fit with its own damping.

    Returns the best source found and its cost, (K,). A step that does not help is undone, so the
    cost never rises.  Source: Marquardt 1963.
    """
    value = evaluate(source, hits, table)
    damping = torch.full_like(value.cost, 0.1)
    for _ in range(n_steps):
        step = _newton_step(value, damping, source.max_step)
        trial = source.moved(step)
        trial_value = evaluate(trial, hits, table)
        better = trial_value.cost < value.cost
        source = trial.where(better, source)
        value = Value(
            torch.where(better, trial_value.cost, value.cost),
            torch.where(better[:, None], trial_value.gradient, value.gradient),
            torch.where(better[:, None, None], trial_value.curvature, value.curvature),
        )
        damping = torch.where(better, damping / 4, damping * 6).clamp(1e-4, 1e6)
    return source, value.cost


def _newton_step(value: Value, damping: Tensor, max_step: tuple[float, ...]) -> Tensor:
    diagonal = value.curvature.diagonal(dim1=-2, dim2=-1)
    # parameters that no hit fixes still need a finite step
    floor = 1e-6 * diagonal.amax(-1, keepdim=True) + 1e-9
    matrix = value.curvature + torch.diag_embed(damping[:, None] * diagonal + floor)
    step, _ = torch.linalg.solve_ex(matrix.double(), -value.gradient.double())
    step = step.nan_to_num(0.0, 0.0, 0.0).float()
    excess = (step.abs() / step.new_tensor(max_step)).amax(-1, keepdim=True)
    return step / excess.clamp_min(1.0)


def timed_hits(batch: EventBatch, centre_m: Tensor, time_zero_ns: Tensor) -> TimedHits:
    """Prepare the first triggering pulse of each DOM that has one.

    Events with fewer than three such DOMs use the first pulses of all. Auxiliary hits are mostly
    noise: with a fair noise share they would move no fit, only slow it down.
    centre_m: (B, 3); time_zero_ns: (B,): what positions and times are relative to.
    """
    dom, event = batch.pulse_dom_idx(), batch.dom_event_idx()
    late = torch.full_like(batch.time_ns, torch.inf)
    first = late.new_full((batch.n_doms,), torch.inf)
    clean_times = torch.where(batch.auxiliary, late, batch.time_ns)
    first = first.scatter_reduce_(0, dom, clean_times, "amin")
    triggered = torch.isfinite(first)
    first = torch.where(triggered, first, batch.time_ns[batch.dom_pulse_offsets[:-1]])
    charge = segment_sum_rounded_once(batch.charge_pe.clamp_min(0), dom, batch.n_doms)
    photons = torch.where(triggered, charge.clamp(1.0, MAX_PHOTONS), torch.ones_like(charge))
    noise = torch.where(triggered, NOISE_SHARE["triggered"], NOISE_SHARE["auxiliary"])
    n_triggered = segment_sum(triggered.float(), event, batch.n_events)
    kept = triggered | (n_triggered < MIN_TRIGGERED)[event]
    event = event[kept]
    return TimedHits(
        event,
        batch.xyz_m[kept] - centre_m[event],
        first[kept] - time_zero_ns[event],
        noise[kept].to(first.dtype),
        photons[kept],
        batch.n_events,
    )


# Likelihood fits: a track from several starting directions, and a point of light.

SEARCH_BLUR_NS, FINAL_BLUR_NS = 60.0, 20.0
N_SEARCH_STEPS, N_FINAL_STEPS, N_POINT_STEPS = 6, 10, 10
MIN_HITS = 5
EARLY_SHARE = 0.35
"""Scattered light only comes later: a source starts in time with this quantile of its hits."""


@dataclass(frozen=True)
class CentredHits:
    """First pulses relative to the charge centre, (B, 3) m, and to a robust time, (B,) ns.

    medium: what the light came through
    """

    hits: TimedHits
    centre_m: Tensor
    time_zero_ns: Tensor
    medium: Medium


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
    return CentredHits(timed_hits(batch, centre, time_zero), centre, time_zero, batch.medium)


def fit_track(centred: CentredHits, first: FitResult, others: list[FitResult]) -> FitResult:
    """Fit tracks from the directions of other fits, and from the reverse of the first and last.

    The first fit stands where there are fewer than five hits.
    """
    directions = [first.direction, *(fit.direction for fit in others)]
    starts = torch.stack([*directions, -directions[0], -directions[-1]])
    n_starts, n_events = starts.shape[:2]
    many = centred.hits.repeated(n_starts)
    medium, device = centred.medium, starts.device
    source = _track_through_centre(many, -starts.flatten(0, 1), medium)
    table = arrival_table(SEARCH_BLUR_NS, medium, device)
    found, cost = minimise(source, many, table, N_SEARCH_STEPS)
    best = cost.view(n_starts, n_events).argmin(0) * n_events
    best = best + torch.arange(n_events, device=best.device)
    table = arrival_table(FINAL_BLUR_NS, medium, device)
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
    arrival = source.geometry(hits.xyz_m, hits.fit, centred.medium).arrival_ns
    source = PointSource(zero, _early(hits, arrival), zero)
    table = arrival_table(SEARCH_BLUR_NS, centred.medium, zero.device)
    found, _ = minimise(source, hits, table, N_POINT_STEPS)
    ok = torch.isfinite(found.position_m).all(-1, keepdim=True)
    return centred.centre_m + torch.where(ok, found.position_m, zero)


def _track_through_centre(hits: TimedHits, travel: Tensor, medium: Medium) -> TrackSource:
    zero = torch.zeros_like(travel)
    source = TrackSource(travel, zero, zero[:, 0], zero)
    early = _early(hits, source.geometry(hits.xyz_m, hits.fit, medium).arrival_ns)
    return TrackSource(travel, zero, early, zero)


def _early(hits: TimedHits, arrival_ns: Tensor) -> Tensor:
    """Find the time of a source that lights most of its likely signal in time. (K,) ns."""
    delay = hits.time_ns - arrival_ns
    return segment_quantile(delay, 1 - hits.noise, EARLY_SHARE, hits.fit, hits.n_fits)


def _n_hits(hits: TimedHits) -> Tensor:
    return segment_sum(torch.ones_like(hits.time_ns), hits.fit, hits.n_fits)
