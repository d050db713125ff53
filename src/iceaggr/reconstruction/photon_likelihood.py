"""Likelihood of every photon of an event, at lit and at dark DOMs, for light from along a line.

A cascade is one point of light with a direction; a track is a muon and cascades along it. The
simulation's own formulas say how much light a DOM expects and how late it comes, so that a fit and
the bound on all fits share them with it. Letters: M fits, S sources, D DOMs, N pulses, K pairs of a
source and a DOM, P parameters.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from scipy.spatial.distance import cdist
from scipy.special import digamma, expit, gammaincinv, gammaln

from iceaggr.batches.event_batch import EventBatch, ragged_rows
from iceaggr.detector import C_M_PER_NS
from iceaggr.events.simulation.ice import Site
from iceaggr.events.simulation.pairs import (
    Pairs,
    Tracks,
    lit_by_cascades,
    lit_by_tracks,
)
from iceaggr.reconstruction.hypotheses import N_PARAMETERS, Line

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

PHOTONS_PER_PE = 1.0 / 0.82
"""Photons of one photo-electron of charge: 30 % of single ones have an exponential charge of mean
0.4, the rest a Gaussian about 1. Source: arXiv:1612.05093 as `events.simulation.pulses` has it."""
SPREAD = 1.28
"""Variance of the charge over that of a Poisson number of photons, by the same distribution."""
MAX_PHOTONS = 235.0
"""Photons of one DOM that count at most: nobody knows its efficiency to better than 6 %, and
saturation sets in above."""
BEFORE_NS, AFTER_NS = 200.0, 2000.0
"""Window about the first light: later come afterpulses, before it noise."""
RAMP_NS = 2.0
"""Softness of the first photon's arrival: photomultiplier jitter, whole nanoseconds, and pulses
that begin with their first photon."""
SMOOTH = 0.05
"""Width in the cosine over which the emission of cascades is averaged."""
NOISE_PER_NS = 1e-6
"""Dark hits of one DOM that a fit allows for, set higher than the physical rate of 560 Hz."""
STRAY_SHARE, STRAY_NS = 0.02, 2500.0
"""Share of a DOM's photons that no source explains, evenly over the window."""
MOVE_M, TURN_RAD = 0.5, 0.03
"""Steps of the numerical derivatives; the emission profile is tabulated in steps of 0.01."""


@dataclass(frozen=True)
class DomPhotons:
    """What the DOMs around a source saw, lit or dark; DOMs sorted by fit, pulses by DOM.

    fit, sensor: (D,) int64, sensor the row of the live sensor.  count: (D,) photons
    trust: (D,) weight of the DOM in the likelihood, at most 1
    dom: (N,) int64.  time_ns, photons: (N,).  n_fits: M.  site: of the detector
    ramp_ns, smooth: softness of arrival times and of the emission's angle, large for a first search
    """

    fit: Ints
    sensor: Ints
    count: Floats
    trust: Floats
    dom: Ints
    time_ns: Floats
    photons: Floats
    n_fits: int
    site: Site
    ramp_ns: float = RAMP_NS
    smooth: float = SMOOTH


# The photons of events around their sources.


def photons_near(
    batch: EventBatch,
    site: Site,
    rows: Ints,
    lines: list[Line],
    reach_m: tuple[float, ...],
) -> DomPhotons:
    """Collect the photons of all DOMs within reach of the sources of one of the lines.

    rows: (M,) int64 events of the batch, one for each fit; an event may come several times.
    """
    near, first_ns = _around(site, lines, reach_m)
    fit, sensor = np.nonzero(near)
    place = np.full(near.shape, -1)
    place[fit, sensor] = np.arange(len(fit))
    pulse, owner = _pulses_of(batch, rows)
    hit = _live_rows(site)[batch.sensor_idx.numpy()[batch.pulse_dom_idx().numpy()[pulse]]]
    time_ns = batch.time_ns.numpy()[pulse].astype(np.float64)
    dom = np.where(hit >= 0, place[owner, hit], -1)
    late = time_ns - first_ns[owner, hit]
    kept = (dom >= 0) & (late > -BEFORE_NS) & (late < AFTER_NS)
    dom, time_ns = dom[kept], time_ns[kept]
    photons = batch.charge_pe.numpy()[pulse[kept]].astype(np.float64) * PHOTONS_PER_PE
    order = np.lexsort((time_ns, dom))
    count = sums(photons, dom, len(fit))
    trust = np.minimum(1.0, MAX_PHOTONS / np.maximum(count, 1e-9)) / SPREAD
    return DomPhotons(
        fit, sensor, count, trust, dom[order], time_ns[order], photons[order], len(rows), site
    )


def _around(
    site: Site, lines: list[Line], reach_m: tuple[float, ...]
) -> tuple[npt.NDArray[np.bool_], Floats]:
    """Find the sensors within reach and when light reaches them first: two (M, sensors)."""
    n_fits, n_sensors = len(lines[0].time_ns), site.sensors.n_sensors
    near = np.zeros((n_fits, n_sensors), bool)
    first_ns = np.full((n_fits, n_sensors), np.inf)
    for line, reach in zip(lines, reach_m, strict=True):
        sources = line.cascades()
        distance = cdist(sources.vertex_m, site.sensors.xyz_m)
        arrival = sources.time_ns[:, None] + distance * site.medium.light_ns_per_m
        starts = np.searchsorted(line.fit, np.arange(n_fits))
        near |= np.minimum.reduceat(distance, starts, axis=0) < reach
        first_ns = np.minimum(first_ns, np.minimum.reduceat(arrival, starts, axis=0))
    return near, first_ns


def _pulses_of(batch: EventBatch, rows: Ints) -> tuple[Ints, Ints]:
    """List the pulses of events, one event after the other, and the fit of each."""
    offsets = batch.dom_pulse_offsets.numpy()[batch.event_dom_offsets.numpy()]
    n = np.diff(offsets)[rows]
    return ragged_rows(offsets[:-1][rows], n), np.repeat(np.arange(len(rows)), n)


def _live_rows(site: Site) -> Ints:
    """Map rows of the detector's table to live sensors, -1 for others."""
    in_use = site.detector.in_use
    return np.where(in_use, np.cumsum(in_use) - 1, -1)


# Delays: the Gamma density of Pandel on a softened clock.


@dataclass(frozen=True)
class DelayTerms:
    """Log density of delays, per ns, and its derivatives, each (K,)."""

    log_density: Floats
    by_ns: Floats
    by_xi: Floats
    by_rho: Floats


def delay_terms(
    delay_ns: Floats, xi: Floats, rho_per_ns: Floats, ramp_ns: float = RAMP_NS
) -> DelayTerms:
    """Compute the density of a delay behind unscattered light, softened at zero.

    The Gamma distribution of shape xi and rate rho is taken at s = w ln(1 + exp(t / w)):
    a density of t, exactly normalised, that is the Gamma's above a few w and finite below.
    Source: D. Pandel 1996 for the Gamma; the softening is ours, for the published Gaussian blur has
    no cheap form at every shape and rate.
    """
    u = np.maximum(delay_ns / ramp_ns, -40.0)
    slope = expit(u)
    s = ramp_ns * np.logaddexp(0.0, u)
    log_x = np.log(rho_per_ns * s)
    log_density = np.log(rho_per_ns * slope) + (xi - 1) * log_x - rho_per_ns * s - gammaln(xi)
    return DelayTerms(
        log_density,
        ((xi - 1) / s - rho_per_ns) * slope + (1 - slope) / ramp_ns,
        log_x - digamma(xi),
        xi / rho_per_ns - s,
    )


# Pairs of a source and a DOM, chosen once, and their light wherever the line moves.


@dataclass(frozen=True)
class Links:
    """K pairs sorted by DOM: those of cascades and those of muons, and where each goes.

    source, cascade_dom: of cascades.  muon_dom: of muons.  order: (K,) int64 of both, one after
    the other.  dom: (K,) int64 ascending.  first: (D,) and n: (D,) int64, the pairs of each DOM
    """

    source: Ints
    cascade_dom: Ints
    muon_dom: Ints
    order: Ints
    dom: Ints
    first: Ints
    n: Ints


def link(line: Line, seen: DomPhotons, reach_m: float) -> Links:
    """Pair each DOM with the sources of its fit that are within reach, and with its muon."""
    n_sources = np.bincount(line.fit, minlength=seen.n_fits)
    starts = np.cumsum(n_sources) - n_sources
    dom = np.repeat(np.arange(len(seen.fit)), n_sources[seen.fit])
    source = ragged_rows(starts[seen.fit], n_sources[seen.fit])
    xyz_m = seen.site.sensors.xyz_m
    way = xyz_m[seen.sensor[dom]] - line.cascades().vertex_m[source]
    near = (way * way).sum(axis=1) < reach_m**2
    dom, source = dom[near], source[near]
    muon_dom = np.flatnonzero((line.muon_gev > 0)[seen.fit])
    tracks = line.tracks()
    along, distance = _along_tracks(tracks, seen, muon_dom)
    row = seen.fit[muon_dom]
    near = (distance < reach_m) & (along > tracks.first_m[row] - reach_m)
    muon_dom = muon_dom[near & (along < tracks.last_m[row] + 2 * reach_m)]
    both = np.concatenate([dom, muon_dom])
    order = np.argsort(both, kind="stable")
    n = np.bincount(both, minlength=len(seen.fit))
    return Links(source, dom, muon_dom, order, both[order], np.cumsum(n) - n, n)


def _along_tracks(tracks: Tracks, seen: DomPhotons, dom: Ints) -> tuple[Floats, Floats]:
    row = seen.fit[dom]
    way = seen.site.sensors.xyz_m[seen.sensor[dom]] - tracks.nearest_m[row]
    along = (way * tracks.travel[row]).sum(axis=1)
    square = (way * way).sum(axis=1) - along * along
    return along, np.sqrt(np.maximum(square, 0.25))


def light_at(line: Line, seen: DomPhotons, links: Links) -> Floats:
    """Compute the light of all pairs: (K, 4) log expected photons, arrival in ns, xi, rho."""
    sensor, site = seen.sensor[links.cascade_dom], seen.site
    by_cascades = lit_by_cascades(line.cascades(), links.source, sensor, site, seen.smooth)
    tracks, row = line.tracks(), seen.fit[links.muon_dom]
    along, distance = _along_tracks(tracks, seen, links.muon_dom)
    by_muons = lit_by_tracks(tracks, row, seen.sensor[links.muon_dom], along, distance, site)
    # the track's own clock starts at the nearest point, the line's at the vertex
    start = line.time_ns - (line.vertex_m * line.travel).sum(axis=1) / C_M_PER_NS
    muon = _columns(by_muons)
    muon[:, 0] += np.log(np.maximum(line.muon_light[row], 1e-30))
    muon[:, 1] += start[row]
    return np.concatenate([_columns(by_cascades), muon])[links.order]


def _columns(pairs: Pairs) -> Floats:
    log_expected = np.log(np.maximum(pairs.expected_pe, 1e-30))
    return np.column_stack([log_expected, pairs.arrival_ns, pairs.xi, pairs.rho_per_ns])


def slopes(line: Line, seen: DomPhotons, links: Links) -> Floats:
    """Differentiate `light_at` by the parameters: (K, 4, P)."""
    found = np.zeros((len(links.dom), 4, N_PARAMETERS))
    for k, size in enumerate((MOVE_M, MOVE_M, MOVE_M, TURN_RAD, TURN_RAD)):
        step = np.zeros((seen.n_fits, N_PARAMETERS))
        step[:, k] = size
        above, below = (light_at(line.moved(s), seen, links) for s in (step, -step))
        found[:, :, k] = (above - below) / (2 * size)
    found[:, 1, 5] = 1.0
    found[:, 0, 6] = 1.0
    return found


# The likelihood, its gradient and curvature, and its maximum.


@dataclass(frozen=True)
class Value:
    """Negative log-likelihood (M,), gradient (M, P), curvature (M, P, P), shares of light (S + M,).

    claimed: photons that each source explains over those it sends, cascades first, then muons
    """

    cost: Floats
    gradient: Floats
    curvature: Floats
    claimed: Floats


def evaluate(line: Line, seen: DomPhotons, links: Links, with_slopes: bool = True) -> Value:
    """Compute the extended likelihood of all photons: Poisson numbers and their times.

    ln L = sum over pulses of n ln(sum over sources of mu p(t) + noise) - sum over DOMs of mu; DOMs
    without a hit count with the second term. Each DOM weighs as much as `trust` says.
    The curvature is Fisher's for the numbers, squared scores for the times: never negative.
    """
    state = light_at(line, seen, links)
    expected = np.exp(state[:, 0])
    total = sums(expected, links.dom, len(seen.fit))
    n = links.n[seen.dom]
    pulse = np.repeat(np.arange(len(seen.dom)), n)
    pair = ragged_rows(links.first[seen.dom], n)
    delay = seen.time_ns[pulse] - state[pair, 1]
    terms = delay_terms(delay, state[pair, 2], state[pair, 3], seen.ramp_ns)
    density = np.exp(np.minimum(state[pair, 0] + terms.log_density, 300.0))
    floor = NOISE_PER_NS + STRAY_SHARE * seen.count / STRAY_NS
    every = sums(density, pulse, len(seen.dom)) + floor[seen.dom]
    weight = seen.photons * seen.trust[seen.dom]
    gain = sums(weight * np.log(every), seen.fit[seen.dom], seen.n_fits)
    sent = sums(seen.trust * total, seen.fit, seen.n_fits)
    share = density / every[pulse]
    claimed = _claimed(line, seen, links, pair, weight[pulse] * share, expected)
    if not with_slopes:
        none = np.zeros((seen.n_fits, 0))
        return Value(sent - gain, none, none[:, :, None], claimed)
    slope = slopes(line, seen, links)
    by_dom = _sum_rows(expected[:, None] * slope[:, 0], links.dom, len(seen.fit))
    local = np.stack([np.ones_like(share), -terms.by_ns, terms.by_xi, terms.by_rho], axis=1)
    scores = _sum_rows(
        np.einsum("ki,kip->kp", share[:, None] * local, slope[pair]), pulse, len(seen.dom)
    )
    gradient = _sum_rows(seen.trust[:, None] * by_dom, seen.fit, seen.n_fits) - _sum_rows(
        weight[:, None] * scores, seen.fit[seen.dom], seen.n_fits
    )
    mean = by_dom / np.maximum(total, 1e-12)[:, None]
    timing = scores - mean[seen.dom]
    curvature = _outer(mean, seen.trust * total, seen.fit, seen.n_fits)
    curvature += _outer(timing, weight, seen.fit[seen.dom], seen.n_fits)
    return Value(sent - gain, gradient, curvature, claimed)


def _claimed(
    line: Line, seen: DomPhotons, links: Links, pair: Ints, photons: Floats, expected: Floats
) -> Floats:
    """Divide, for each source, the photons that it explains by those that it sends."""
    n_sources = len(line.fit)
    owner = np.concatenate([links.source, n_sources + seen.fit[links.muon_dom]])[links.order]
    size = n_sources + seen.n_fits
    explained = sums(photons, owner[pair], size)
    sent = sums(expected * seen.trust[links.dom], owner, size)
    return (explained + 1e-3) / (sent + 1e-3)


def sums(values: Floats, segment: Ints, n_segments: int) -> Floats:
    """Add up the values of each segment: (R,) to (n_segments,)."""
    return np.asarray(np.bincount(segment, weights=values, minlength=n_segments), np.float64)


def _sum_rows(values: Floats, segment: Ints, n_segments: int) -> Floats:
    """Add up rows of ascending segments: (R, P) to (n_segments, P)."""
    found = np.zeros((n_segments, values.shape[1]))
    starts = np.flatnonzero(np.diff(segment, prepend=-1))
    if len(starts):
        found[segment[starts]] = np.add.reduceat(values, starts, axis=0)
    return found


def _outer(rows: Floats, weight: Floats, segment: Ints, n_segments: int) -> Floats:
    """Add up weighted outer products of the rows of each ascending segment: (n_segments, P, P)."""
    found = np.zeros((n_segments, rows.shape[1], rows.shape[1]))
    ends = np.searchsorted(segment, np.arange(n_segments + 1))
    for k, (start, end) in enumerate(pairwise(ends)):
        found[k] = (rows[start:end] * weight[start:end, None]).T @ rows[start:end]
    return found


MAX_STEP = np.array([30.0, 30.0, 30.0, 0.3, 0.3, 100.0, 0.7])
"""Largest changes of one iteration: beyond these the quadratic approximation means nothing."""
WEAK = 1.0 / np.array([100.0, 100.0, 100.0, 2.0, 2.0, 300.0, 3.0]) ** 2
"""A weak curvature for parameters that no photon fixes."""


def rescaled(line: Line, claimed: Floats) -> Line:
    """Give each source the light that it explains.

    Source: expectation maximisation of a Poisson mixture; the likelihood never falls.
    """
    factor = np.clip(claimed, 0.2, 5.0)
    n_sources = len(line.fit)
    return replace(
        line,
        energy_gev=np.maximum(line.energy_gev * factor[:n_sources], 1e-2),
        muon_light=np.maximum(line.muon_light * factor[n_sources:], 1e-3),
    )


def minimise(line: Line, seen: DomPhotons, links: Links, n_steps: int) -> tuple[Line, Value]:
    """Minimise the cost by damped Newton steps, each fit with its own damping.

    A step that does not help is undone.  Source: Marquardt 1963.
    """
    value = evaluate(line, seen, links)
    damping = np.full(seen.n_fits, 0.1)
    for _ in range(n_steps):
        trial = line.moved(_newton_step(value, damping))
        trial = rescaled(trial, evaluate(trial, seen, links, with_slopes=False).claimed)
        trial_value = evaluate(trial, seen, links)
        better = trial_value.cost < value.cost
        line = trial.where(better, line)
        owner = np.concatenate([line.fit, np.arange(seen.n_fits)])
        value = Value(
            np.where(better, trial_value.cost, value.cost),
            np.where(better[:, None], trial_value.gradient, value.gradient),
            np.where(better[:, None, None], trial_value.curvature, value.curvature),
            np.where(better[owner], trial_value.claimed, value.claimed),
        )
        damping = np.clip(np.where(better, damping / 4, damping * 6), 1e-4, 1e6)
    return line, value


def _newton_step(value: Value, damping: Floats) -> Floats:
    diagonal = np.diagonal(value.curvature, axis1=1, axis2=2)
    matrix = value.curvature + _diagonal(damping[:, None] * diagonal + WEAK)
    step = np.linalg.solve(matrix, -value.gradient[:, :, None])[:, :, 0]
    excess = (np.abs(step) / MAX_STEP).max(axis=1, keepdims=True)
    return step / np.maximum(excess, 1.0)


def _diagonal(values: Floats) -> Floats:
    return values[:, :, None] * np.eye(values.shape[1])


# The bound: what the photons tell at best about the direction, whoever fits them.

N_QUANTILES, FEWEST_QUANTILES = 48, 3
"""Photons that stand for all of a DOM, and at least for each source that lights it."""
GOLDEN = 0.5 * (np.sqrt(5.0) - 1.0)


def direction_bound_rad(line: Line, seen: DomPhotons, links: Links, max_photons: float) -> Floats:
    """Compute the Cramer-Rao bound on the direction: (M,) rad, root of the mean squared angle.

    Vertex, time and the amount of light are unknown, too. Fisher information of Poisson numbers
    and of the times of their photons, none of which tells which source it came from; a DOM tells no
    more than max_photons independent photons. Only the sensors and fits of seen are looked at, not
    its photons.
    """
    information = evaluate(line, typical_photons(line, seen, links, max_photons), links).curvature
    covariance = np.linalg.inv(information + np.diag(WEAK))
    return np.sqrt(covariance[:, 3, 3] + covariance[:, 4, 4])


def typical_photons(line: Line, seen: DomPhotons, links: Links, max_photons: float) -> DomPhotons:
    """Light the DOMs as the line does on average: photons at even quantiles of each source's delay.

    Those of a DOM that expects more than max_photons count so much less.
    """
    state = light_at(line, seen, links)
    expected = np.exp(state[:, 0])
    total = sums(expected, links.dom, len(seen.fit))
    n = np.maximum(N_QUANTILES // links.n[links.dom], FEWEST_QUANTILES)
    pair = np.repeat(np.arange(len(n)), n)
    # an offset of its own for each source: even ones would miss the tails, which tell the most
    offset = (np.arange(len(n)) + 0.5) * GOLDEN % 1.0
    level = (ragged_rows(np.zeros(len(n), np.int64), n) + offset[pair]) / n[pair]
    s = np.maximum(gammaincinv(state[pair, 2], level) / state[pair, 3], 1e-12)
    # back from the softened clock
    w = seen.ramp_ns
    delay = np.where(s > 30 * w, s, w * np.log(np.expm1(np.minimum(s / w, 30))))
    return replace(
        seen,
        count=total,
        trust=np.minimum(1.0, max_photons / np.maximum(total, 1e-12)),
        dom=links.dom[pair],
        time_ns=state[pair, 1] + delay,
        photons=(expected / n)[pair],
    )
