"""Likelihood of first-pulse times, and its maximisation for thousands of events at once."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import TypeVar

import torch
from torch import Tensor

from iceaggr.batches.event_batch import EventBatch
from iceaggr.reconstruction.hypotheses import EFFECTIVE_OFFSET_M, EFFECTIVE_SLOPE, Source
from iceaggr.reconstruction.pandel import ArrivalTable
from iceaggr.reconstruction.segments import segment_sum, segment_sum_rounded_once

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
    geometry = source.geometry(hits.xyz_m, hits.fit)
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
