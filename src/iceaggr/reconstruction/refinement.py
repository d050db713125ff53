"""Refinement: bright events are fitted photon by photon, from the network's direction among others.

Two hypotheses are fitted, a cascade and a track of a muon with cascades along it, which may start
inside, and the likelihood chooses. The network's answer stays in the result as a prior: what it
knows about the direction multiplies what the photons tell. A fit far from it may have followed an
atmospheric muon; the network then has the last word.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from iceaggr.angles import SILENT, kappa_of_mean_cosine, mean_cosine, sphere_density
from iceaggr.batches.collation import collate
from iceaggr.batches.event_batch import EventBatch
from iceaggr.config import BatchConfig
from iceaggr.detector import Detector
from iceaggr.events.dom_events import DomEvents
from iceaggr.events.simulation.ice import Site, site_of
from iceaggr.reconstruction.hypotheses import (
    N_PARAMETERS,
    Line,
    across,
    cascades_along,
    even_directions,
    points_of_light,
)
from iceaggr.reconstruction.likelihood import CentredHits, centred_hits, fit_point, fit_track
from iceaggr.reconstruction.line_fit import FitResult, improved_line_fit, tensor_of_inertia
from iceaggr.reconstruction.photon_likelihood import (
    PHOTONS_PER_PE,
    DomPhotons,
    Floats,
    Ints,
    Links,
    Value,
    evaluate,
    light_at,
    link,
    minimise,
    photons_near,
    rescaled,
    sums,
)
from iceaggr.reconstruction.segments import in_sensor_order

MIN_CHARGE_PE = {"ice": 30.0, "water": 6.0}
"""Triggering charge from which an event is refined, by the medium: with less, the network knows as
much. Measured in ice (docs/LOG.md) and in Hexagon's water (docs/benchmarks.md, "Any detector")."""
CASCADE_REACH_M, TRACK_REACH_M = 350.0, 160.0
"""Beyond these distances a source's light counts as nothing."""
N_STARTS = 8
"""Even directions from which a cascade is fitted, besides the network's."""
STAGES = ((30.0, 0.6, 8), (10.0, 0.2, 10), (3.0, 0.05, 10))
"""Softness of times in ns and of the emission's angle, and steps: sharp ones alone lead a fit into
the nearest of many minima."""
TRACK_STAGES = ((30.0, 0.3, 8), (8.0, 0.1, 6), (3.0, 0.05, 8))
TEMPER = {"cascade": 3.5, "track": 7.0}
"""By which the likelihood is divided beside the network's: the squared error is so many times the
one that its curvature promises, where the photons scatter by chance only. More where they do not:
times the square of the misfit. Measured with trained networks, ice and water (docs/LOG.md)."""
MIN_EXPECTED = 0.5
"""Photons that a DOM expects at least, so that its own scatter says something."""
FAILED_SHARE = 0.3
"""Of fits that say nothing: they ended in a wrong minimum or followed an atmospheric muon. For the
direction; the confidence has a share of its own for each event, `failed_share`."""
FAILED_PER_UNEXPLAINED, SURE_KAPPA = 2.0, 8.0
"""Of fits that fail, by the share of light that they leave unexplained, and the network's kappa
where half as many do. Measured with trained networks, with and without muons (docs/LOG.md)."""
TRACK_PENALTY = 3.0
"""Nats by which a track must be better than a cascade: it has many more sources."""
NAMES = ("as predicted", "cascade", "track")
N_PULSES_AT_ONCE = 30_000
"""Of the events that are fitted together: bounds the memory to a few hundred MB."""
WHOLE = BatchConfig(max_doms_per_event=1_000_000)
"""A fit needs all DOMs of an event: one that a model's cap left out would count as dark."""


@dataclass(frozen=True)
class Refined:
    """Directions and confidence after refinement, of B events.

    direction: (B, 3) float64, unit vector to the origin.  kappa: (B,) float64
    hypothesis: (B,) int64 into NAMES, 0 where the event was not refined
    """

    direction: Floats
    kappa: Floats
    hypothesis: Ints


def worth_refining(batch: EventBatch, min_charge_pe: float) -> npt.NDArray[np.bool_]:
    """Mark the events with enough triggering charge: (B,) bool."""
    return triggering_charge_pe(batch) >= min_charge_pe


def triggering_charge_pe(batch: EventBatch) -> Floats:
    """Add up the charge that is not auxiliary: (B,) p.e."""
    event = batch.dom_event_idx()[batch.pulse_dom_idx()].numpy()
    charge = torch.where(batch.auxiliary, 0.0, batch.charge_pe).double().numpy()
    return sums(charge, event, batch.n_events)


def refine(
    batch: EventBatch,
    site: Site,
    direction: Floats,
    kappa: Floats,
    min_charge_pe: float | None = None,
) -> Refined:
    """Refine the bright events of a minibatch on the CPU, with the network's answer as a prior.

    site: of the batch's detector.  direction: (B, 3) float64 unit vectors to the origin, kappa:
    (B,) float64, both the network's; a kappa of 0 says nothing.
    min_charge_pe: triggering charge of an event, at least; None = as pays in the medium
    """
    if min_charge_pe is None:
        min_charge_pe = MIN_CHARGE_PE[site.medium.name]
    batch = in_sensor_order(batch)
    found = Refined(direction.copy(), kappa.copy(), np.zeros(batch.n_events, np.int64))
    rows = np.flatnonzero(worth_refining(batch, min_charge_pe))
    if not len(rows):
        return found
    centred = centred_hits(batch)
    n_pulses = np.diff(batch.dom_pulse_offsets.numpy()[batch.event_dom_offsets.numpy()])[rows]
    parts = (np.cumsum(n_pulses) - n_pulses) // N_PULSES_AT_ONCE
    for part in np.unique(parts):
        _refine_rows(batch, site, centred, rows[parts == part], found)
    return found


class Refiner:
    """Refines what a model predicts, batch by batch; keeps account of events and processor time."""

    def __init__(self, detector: Detector, min_charge_pe: float | None = None) -> None:
        """min_charge_pe: triggering charge of an event, at least; None = as pays in the medium."""
        self._detector, self._site = detector, site_of(detector)
        name = detector.medium.name
        self._min_charge_pe = MIN_CHARGE_PE[name] if min_charge_pe is None else min_charge_pe
        self._why = f", the default in {name}," if min_charge_pe is None else ""
        self._chunk: DomEvents | None = None
        self._row_of: dict[int, int] = {}
        self.n_events = np.zeros(len(NAMES), np.int64)
        self.seconds = 0.0

    def watch(self, chunks: Iterable[DomEvents]) -> Iterator[DomEvents]:
        """Pass chunks on and keep the present one: a model's batch may lack DOMs of its events."""
        for chunk in chunks:
            self._chunk = chunk
            self._row_of = {int(event): row for row, event in enumerate(chunk.event_id)}
            yield chunk

    def __call__(self, event_id: Ints, direction: Floats, kappa: Floats) -> Refined:
        """Refine the predictions of events of the present chunk, (B,), (B, 3) and (B,)."""
        assert self._chunk is not None, "chunks are watched while they are predicted"
        began = time.process_time()
        rows = np.array([self._row_of[int(event)] for event in event_id], np.int64)
        whole = collate(self._chunk, rows, self._detector, WHOLE)
        found = refine(whole, self._site, direction, kappa, self._min_charge_pe)
        self.seconds += time.process_time() - began
        self.n_events += np.bincount(found.hypothesis, minlength=len(NAMES))
        return found

    def words(self) -> str:
        """Say for which events it paid to refine and what it cost."""
        n_refined = int(self.n_events[1:].sum())
        kinds = ", ".join(
            f"{n:,} as {name}" for n, name in zip(self.n_events[1:], NAMES[1:], strict=True)
        )
        each = f", {1e3 * self.seconds / n_refined:.0f} ms of one core each" if n_refined else ""
        return (
            f"{n_refined:,} of {int(self.n_events.sum()):,} events with at least"
            f" {self._min_charge_pe:g} p.e. that triggered{self._why} are refined ({kinds}{each})"
        )


def _refine_rows(
    batch: EventBatch, site: Site, centred: CentredHits, rows: Ints, found: Refined
) -> None:
    prior = Prior(found.direction[rows], found.kappa[rows])
    cascades = fit_cascades(batch, site, centred, rows, prior)
    others = [improved_line_fit(batch), tensor_of_inertia(batch)]
    seeds = (_seed_tracks(centred, rows, prior, others), _along_axis(cascades))
    lines = [cascades, *(fit_tracks(batch, site, centred, rows, seed) for seed in seeds)]
    # on the same photons and DOMs, or their likelihoods could not be compared
    seen = photons_near(batch, site, rows, lines, (CASCADE_REACH_M, TRACK_REACH_M, TRACK_REACH_M))
    seen = replace(seen, ramp_ns=STAGES[-1][0], smooth=STAGES[-1][1])
    n_photons = triggering_charge_pe(batch)[rows] * PHOTONS_PER_PE
    fits = []
    for line, kind in zip(lines, ("cascade", "track", "track"), strict=True):
        links = link(line, seen, CASCADE_REACH_M)
        value, spread = evaluate(line, seen, links), scatter(line, seen, links, n_photons)
        fits.append((line, value, TEMPER[kind], spread))
    # one temper for all of an event, or the hypotheses would weigh differently
    costs = np.stack([prior.cost(*fit[:2], TEMPER["cascade"]) for fit in fits])
    costs += np.array([[0.0], [TRACK_PENALTY], [TRACK_PENALTY]])
    chosen = np.nan_to_num(costs, nan=np.inf).argmin(axis=0)
    answers = [prior.weighed(*fit) for fit in fits]
    at = np.arange(len(rows))
    direction = np.stack([direction for direction, _ in answers])[chosen, at]
    kappa = np.stack([kappa for _, kappa in answers])[chosen, at]
    # an event that no hypothesis describes stays as predicted
    sound = np.isfinite(direction).all(axis=1) & np.isfinite(kappa)
    found.direction[rows[sound]] = direction[sound]
    found.kappa[rows[sound]] = kappa[sound]
    found.hypothesis[rows[sound]] = np.minimum(1 + chosen[sound], 2)


# The network's answer beside the likelihood.


@dataclass(frozen=True)
class Prior:
    """What the network says: origin (M, 3) unit vectors, kappa (M,), a von Mises-Fisher density."""

    origin: Floats
    kappa: Floats

    def repeated(self, times: int) -> Prior:
        """Give every event several fits: fit number = start * M + event."""
        return Prior(np.tile(self.origin, (times, 1)), np.tile(self.kappa, times))

    def cost(self, line: Line, value: Value, temper: float) -> Floats:
        """Add the prior to the tempered cost: (M,) nats, up to a constant."""
        cosine = -(line.travel * self.origin).sum(axis=1)
        return value.cost / temper + self.kappa * (1.0 - cosine)

    def combined(self, line: Line, value: Value, temper: float | Floats) -> tuple[Floats, Floats]:
        """Multiply the likelihood about its maximum with the prior: direction (M, 3), kappa (M,).

        Both are Gaussian in the plane that touches the sphere at the maximum; nuisances of the
        likelihood are integrated out.  Source: product of two Gaussian densities.
        """
        first, second = across(line.travel)
        weak = np.diag([1e-6] * value.curvature.shape[1])
        curvature = value.curvature / np.reshape(temper, (-1, 1, 1))
        covariance = np.linalg.inv(curvature + weak)[:, 3:5, 3:5]
        information = np.linalg.inv(covariance)
        offset = np.stack([-(self.origin * axis).sum(axis=1) for axis in (first, second)], axis=1)
        # beyond a right angle the plane ends; the prior then pulls no farther than its edge
        total = information + self.kappa[:, None, None] * np.eye(2)
        near = (-(line.travel * self.origin).sum(axis=1) > 0)[:, None]
        pull = np.where(near, self.kappa[:, None] * offset, 0.0)
        shift = np.linalg.solve(total, pull[:, :, None])[:, :, 0]
        travel = line.travel + shift[:, :1] * first + shift[:, 1:] * second
        travel = travel / np.linalg.norm(travel, axis=1, keepdims=True)
        spread = np.trace(np.linalg.inv(total), axis1=1, axis2=2)
        return -travel, 2.0 / spread

    def weighed(
        self, line: Line, value: Value, temper: float, spread: Scatter
    ) -> tuple[Floats, Floats]:
        """Weigh the combined answer against the network's own: direction (M, 3), kappa (M,).

        A share of the likelihoods says nothing, the others are `combined` with the prior; how well
        the prior bears out the fit tells which of the two this is. The direction is that of the
        mean vector of both for `FAILED_SHARE`. Its confidence is the mean cosine to it for
        `failed_share`, which is higher where light is unexplained: with that share the direction,
        too, would stay nearer to the network and err more on average.
        Source: Bayes' theorem; the von Mises-Fisher density nearest to another one about a
        direction has its mean cosine.
        """
        tempers = temper * spread.misfit**2
        direction, kappa = self.combined(line, value, tempers)
        alone = Prior(self.origin, np.zeros_like(self.kappa)).combined(line, value, tempers)[1]
        # the prior, as wide as it is seen through the errors of the fit
        seen = self.kappa * alone / (self.kappa + alone)
        agrees = sphere_density(seen, -(line.travel * self.origin).sum(axis=1))
        sound, own = mean_cosine(kappa), mean_cosine(np.maximum(self.kappa, SILENT))

        def mean(failed: Floats) -> Floats:
            weight = (1 - failed) * agrees / ((1 - failed) * agrees + failed / (4 * np.pi))
            of_fit = (weight * sound)[:, None] * direction
            return of_fit + ((1 - weight) * own)[:, None] * self.origin

        chosen = mean(np.full_like(kappa, FAILED_SHARE))
        chosen = chosen / np.linalg.norm(chosen, axis=1, keepdims=True)
        length = (mean(failed_share(self.kappa, spread.unexplained)) * chosen).sum(axis=1)
        return chosen, kappa_of_mean_cosine(length)


def failed_share(kappa: Floats, unexplained: Floats) -> Floats:
    """Give the share of fits that fail, (M,): much where the network is unsure and light is left.

    kappa: (M,) of the network.  unexplained: (M,) share of the light
    """
    share = np.clip(FAILED_PER_UNEXPLAINED * unexplained, 0.1, 0.98)
    return np.asarray(share / (1 + (kappa / SURE_KAPPA) ** 2), np.float64)


@dataclass(frozen=True)
class Scatter:
    """How the numbers of photons scatter about what M fits expect.

    misfit: (M,) Pearson's chi2 per degree of freedom, at least 1: 1 = by chance only
    unexplained: (M,) share of an event's photons that are too many in their DOM or out of reach
    """

    misfit: Floats
    unexplained: Floats


def scatter(line: Line, seen: DomPhotons, links: Links, n_photons: Floats) -> Scatter:
    """Compare the photons of the DOMs with what each fit expects.

    n_photons: (M,) of the whole event.
    Source: McCullagh and Nelder 1989, section 4.5, for the dispersion of counts.
    """
    fit, n_fits = seen.fit, seen.n_fits
    expected = sums(np.exp(light_at(line, seen, links)[:, 0]), links.dom, len(fit))
    telling = expected > MIN_EXPECTED
    square = seen.trust * (seen.count - expected) ** 2 / np.maximum(expected, MIN_EXPECTED)
    n_free = np.maximum(np.bincount(fit[telling], minlength=n_fits) - N_PARAMETERS, 3)
    explained = sums(np.minimum(seen.count, expected), fit, n_fits)
    n_photons = np.maximum(n_photons, sums(seen.count, fit, n_fits))
    return Scatter(
        np.maximum(sums(np.where(telling, square, 0.0), fit, n_fits) / n_free, 1.0),
        1.0 - explained / np.maximum(n_photons, 1e-9),
    )


# The two hypotheses.


def fit_cascades(
    batch: EventBatch, site: Site, centred: CentredHits, rows: Ints, prior: Prior
) -> Line:
    """Fit a cascade to each event, from even directions and the network's. Returns M lines.

    Vertex, time, energy and direction are free; the vertex starts at the point fit.
    """
    n_events, n_starts = len(rows), N_STARTS + 1
    vertex = fit_point(centred).double().numpy()[rows]
    time_ns = _time_of_points(centred, vertex, rows, site)
    travel = np.repeat(even_directions(N_STARTS), n_events, axis=0)
    line = points_of_light(
        np.tile(vertex, (n_starts, 1)),
        np.concatenate([travel, -prior.origin]),
        np.tile(time_ns, n_starts),
    )
    fit_rows, fit_prior = np.tile(rows, n_starts), prior.repeated(n_starts)
    for number, stage in enumerate(STAGES):
        line, value = _stage(batch, site, fit_rows, line, stage, CASCADE_REACH_M)
        if number == 0:
            best = (
                fit_prior.cost(line, value, TEMPER["cascade"])
                .reshape(n_starts, n_events)
                .argmin(axis=0)
            )
            line = _taken(line, best * n_events + np.arange(n_events))
            fit_rows = rows
    return line


def fit_tracks(
    batch: EventBatch, site: Site, centred: CentredHits, rows: Ints, seed: FitResult
) -> Line:
    """Fit a track with cascades along it to each event, from a seed for each.

    What shines before the muon's first light goes to zero, so that a starting track needs no start
    of its own.
    """
    line = _tracks_through(seed, centred, rows)
    for stage in TRACK_STAGES:
        line, _ = _stage(batch, site, rows, line, stage, TRACK_REACH_M)
    return line


def _stage(
    batch: EventBatch,
    site: Site,
    rows: Ints,
    line: Line,
    stage: tuple[float, float, int],
    reach_m: float,
) -> tuple[Line, Value]:
    ramp_ns, smooth, n_steps = stage
    seen = photons_near(batch, site, rows, [line], (reach_m,))
    seen = replace(seen, ramp_ns=ramp_ns, smooth=smooth)
    links = link(line, seen, reach_m + 50.0)
    line = _lit(line, seen, links)
    return minimise(line, seen, links, n_steps)


N_LIGHT_STEPS = 4


def _lit(line: Line, seen: DomPhotons, links: Links) -> Line:
    """Let each source shine as its photons say before anything moves."""
    for _ in range(N_LIGHT_STEPS):
        line = rescaled(line, evaluate(line, seen, links, with_slopes=False).claimed)
    return line


def _taken(line: Line, fits: Ints) -> Line:
    """Select fits of one source each."""
    names = ("vertex_m", "travel", "time_ns", "energy_gev", "muon_light")
    chosen = {name: getattr(line, name)[fits] for name in names}
    few = points_of_light(chosen["vertex_m"], chosen["travel"], chosen["time_ns"])
    return replace(few, energy_gev=chosen["energy_gev"], muon_light=chosen["muon_light"])


EARLY_SHARE = 0.2


def _time_of_points(centred: CentredHits, vertex: Floats, rows: Ints, site: Site) -> Floats:
    """Find when a point shines most of whose light comes late: (M,) ns."""
    event, hits = centred.hits.fit.numpy(), centred.hits
    xyz = (hits.xyz_m + centred.centre_m[hits.fit]).double().numpy()
    time = (hits.time_ns + centred.time_zero_ns[hits.fit]).double().numpy()
    found = np.zeros(len(rows))
    for k, row in enumerate(rows):
        own = event == row
        way = np.linalg.norm(xyz[own] - vertex[k], axis=1) * site.medium.light_ns_per_m
        found[k] = np.quantile(time[own] - way, EARLY_SHARE)
    return found


def _seed_tracks(
    centred: CentredHits, rows: Ints, prior: Prior, others: list[FitResult]
) -> FitResult:
    """Fit tracks to first pulses, from the network's direction and those of other fits."""
    n_events = len(centred.time_zero_ns)
    direction = torch.zeros(n_events, 3)
    direction[:, 2] = 1.0
    direction[torch.from_numpy(rows)] = torch.from_numpy(prior.origin).float()
    start = FitResult(
        direction, centred.centre_m, centred.time_zero_ns, torch.ones(n_events, dtype=torch.bool)
    )
    fitted = fit_track(centred, start, others)
    at = torch.from_numpy(rows)
    return FitResult(fitted.direction[at], fitted.position_m[at], fitted.time_ns[at], fitted.ok[at])


def _along_axis(cascades: Line) -> FitResult:
    """Take fitted cascades as seeds of tracks: most light of some starting tracks is one."""
    return FitResult(
        torch.from_numpy(-cascades.travel),
        torch.from_numpy(cascades.vertex_m),
        torch.from_numpy(cascades.time_ns),
        torch.ones(len(cascades.time_ns), dtype=torch.bool),
    )


def _tracks_through(seed: FitResult, centred: CentredHits, rows: Ints) -> Line:
    travel = -seed.direction.double().numpy()
    travel = travel / np.linalg.norm(travel, axis=1, keepdims=True)
    event, hits = centred.hits.fit.numpy(), centred.hits
    xyz_m = (hits.xyz_m + centred.centre_m[hits.fit]).double().numpy()
    hits_m = [xyz_m[event == row] for row in rows]
    position_m, time_ns = seed.position_m.double().numpy(), seed.time_ns.double().numpy()
    return cascades_along(position_m, travel, time_ns, hits_m, TRACK_REACH_M)
