"""One block of triggered events from one random stream: the unit of parallel work."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from iceaggr.detector import C_M_PER_NS, Detector
from iceaggr.events.simulation.atmosphere import bundle_pairs, draw_bundles
from iceaggr.events.simulation.config import N_EVENTS_PER_BLOCK, SimulationConfig
from iceaggr.events.simulation.ice import Floats, Ints, Site, site_of
from iceaggr.events.simulation.interactions import Interactions, draw_interactions
from iceaggr.events.simulation.light import draw_losses, muon_energy, muon_range_m
from iceaggr.events.simulation.pairs import (
    Cascades,
    Pairs,
    Tracks,
    cascade_pairs,
    concatenate_pairs,
    track_pairs,
)
from iceaggr.events.simulation.photons import (
    Photons,
    draw_afterpulses,
    draw_noise,
    draw_photons,
    join,
)
from iceaggr.events.simulation.pulses import form_pulses, quantised
from iceaggr.events.simulation.triggers import Readout, read_out, read_out_all

_PHOTONS_SHORT, _EXPECTED_PE_SHORT = 2, 3
"""With so many fewer than the hits of the trigger, chance noise practically never makes one."""
_FIRST_GUESS = 0.4
_MIN_LOSS_GEV = 0.3
_EVENT_ARRAYS = ("muon_at_array_gev", "neutrino_pe", "muon_pe", "muon_origin")
_PULSE_ARRAYS = ("sensor_id", "time_ns", "charge_pe", "auxiliary", "dark")


class _Least(NamedTuple):
    """With less light, even with chance noise, a trigger practically never fires."""

    n_photons: int
    expected_pe: float


_LEAST_OF_ANY = _Least(3, 1.5)
"""For the three to five coincident hits of IceCube's other triggers."""


@dataclass
class SimulatedEvents:
    """E triggered events and their N pulses, ready to be written.

    n_pulses: (E,) int64.  sensor_id: (N,) int64.  time_ns: (N,) int64.  charge_pe: (N,) float64
    auxiliary, dark (noise alone): (N,) bool.  truth: the interactions, E rows.
    muon_at_array_gev: (E,) float64, 0 for cascades.  neutrino_pe, muon_pe: (E,) float64, detected
    light of the neutrino and of atmospheric muons in the readout.  muon_origin: (E, 3) float64,
    unit vector to where the bundle with most of that light comes from, NaN where there is none
    n_tried, n_outside: interactions drawn, pulses outside the readout.
    """

    n_pulses: Ints
    sensor_id: Ints
    time_ns: Ints
    charge_pe: Floats
    auxiliary: npt.NDArray[np.bool_]
    dark: npt.NDArray[np.bool_]
    truth: Interactions
    muon_at_array_gev: Floats
    neutrino_pe: Floats
    muon_pe: Floats
    muon_origin: Floats
    n_tried: int
    n_outside: int

    def head(self, n: int) -> SimulatedEvents:
        """Keep the first n events; the counts of the whole stay with them."""
        return self._slice(0, min(n, len(self.n_pulses)))

    def tail(self, n: int) -> SimulatedEvents:
        """Drop the first n events."""
        return self._slice(min(n, len(self.n_pulses)), len(self.n_pulses))

    def without_pulses(self) -> SimulatedEvents:
        """Keep labels, truth and pulse counts only."""
        pulses = {name: getattr(self, name)[:0] for name in _PULSE_ARRAYS}
        return replace(self, **pulses)

    def _slice(self, start: int, stop: int) -> SimulatedEvents:
        end = np.concatenate([[0], np.cumsum(self.n_pulses)])
        pulses = {name: getattr(self, name)[end[start] : end[stop]] for name in _PULSE_ARRAYS}
        return replace(
            self,
            n_pulses=self.n_pulses[start:stop],
            truth=self.truth.take(np.arange(start, stop)),
            **{name: getattr(self, name)[start:stop] for name in _EVENT_ARRAYS},
            **pulses,
        )


def simulate_block(config: SimulationConfig, detector: Detector, block: int) -> SimulatedEvents:
    """Simulate one block; the same seed and block give the same events on any machine layout."""
    site = site_of(detector)
    rng = np.random.default_rng(np.random.SeedSequence([config.seed, block]))
    parts: list[SimulatedEvents] = []
    missing, share = N_EVENTS_PER_BLOCK, _FIRST_GUESS
    while missing > 0:
        tried = int(missing / share * 1.05) + 20
        part = _simulate_interactions(tried, config, site, rng)
        share = max(len(part.n_pulses) / tried, 0.01)
        parts.append(part)
        missing -= len(part.n_pulses)
    return join_events(parts).head(N_EVENTS_PER_BLOCK)


def join_events(parts: list[SimulatedEvents]) -> SimulatedEvents:
    """Join events one after the other."""

    def joined(name: str) -> npt.NDArray[np.generic]:
        return np.concatenate([getattr(part, name) for part in parts])

    truth = {
        f.name: np.concatenate([getattr(part.truth, f.name) for part in parts])
        for f in fields(Interactions)
    }
    arrays = ("n_pulses", *_PULSE_ARRAYS, *_EVENT_ARRAYS)
    return SimulatedEvents(
        **{name: joined(name) for name in arrays},  # type: ignore[arg-type]
        truth=Interactions(**truth),
        n_tried=sum(part.n_tried for part in parts),
        n_outside=sum(part.n_outside for part in parts),
    )


def _simulate_interactions(
    n_tried: int, config: SimulationConfig, site: Site, rng: np.random.Generator
) -> SimulatedEvents:
    drawn = draw_interactions(n_tried, config, site, rng)
    n = len(drawn.code)
    pairs, muon_gev = _light(drawn, site, rng)
    bundles = draw_bundles(n, config.muon_window_us, rng)
    # sources of light: the neutrinos, then the bundles; the owner is the event of each
    owner = np.concatenate([np.arange(n), bundles.event])
    if len(bundles.event):
        muons = bundle_pairs(bundles, rng)
        pairs = concatenate_pairs([pairs, replace(muons, event=muons.event + n)])
    least = _LEAST_OF_ANY if config.all_triggers else _least(site.n_trigger_hits)
    promising = _promising(pairs, owner, least.expected_pe)
    photons = draw_photons(promising, config.max_photons_per_source, site, rng)
    n_photons = np.bincount(owner[photons.event], minlength=n)
    visible = np.flatnonzero(n_photons >= least.n_photons)
    own = _from_time_zero(photons, owner, visible)
    hits = _hits(own.photons, len(visible), config.busy_modules, site, rng)
    pulses = form_pulses(hits, site, rng, config.busy_modules)
    if config.all_triggers:
        readout = read_out_all(pulses, len(visible), rng)
    else:
        readout = read_out(pulses, len(visible), site, rng)
    origin = np.concatenate([np.full((n, 3), np.nan), bundles.origin])
    light = _light_read_out(readout, own, origin, len(visible))
    return _collect(readout, drawn.take(visible), muon_gev[visible], light, n_tried, site)


def _least(n_trigger_hits: int) -> _Least:
    return _Least(n_trigger_hits - _PHOTONS_SHORT, n_trigger_hits - _EXPECTED_PE_SHORT)


def _light(drawn: Interactions, site: Site, rng: np.random.Generator) -> tuple[Pairs, Floats]:
    """Pair every source of light with the sensors that see it; also the muon energy at the array.

    Time zero of a track is its nearest point to the centre; that of a cascade its vertex.
    """
    track = np.flatnonzero(drawn.is_track & drawn.in_sight)
    reach_m, matter = site.extent.reach_m, site.matter
    vertex = drawn.vertex_along_m[track]
    travel, start_gev = drawn.travel[track], drawn.muon_gev[track]
    nearest = drawn.vertex_m[track] - vertex[:, None] * travel
    first = np.maximum(vertex, -reach_m)
    last = np.clip(vertex + muon_range_m(start_gev, matter), first, reach_m)
    last = np.maximum(last, first)
    tracks = Tracks(track, nearest, travel, vertex, first, last, start_gev)
    at_array = np.zeros(len(drawn.code))
    at_array[track] = muon_energy(start_gev, first - vertex, matter)
    losses = draw_losses(start_gev, vertex, first, last, rng, matter)
    bright = losses.energy_gev > _MIN_LOSS_GEV
    row, along, loss_gev = losses.row[bright], losses.along_m[bright], losses.energy_gev[bright]
    starts_here = ~drawn.is_track | (drawn.vertex_along_m > -reach_m)
    near = np.flatnonzero(starts_here & drawn.in_sight)
    vertex_ns = np.where(drawn.is_track, drawn.vertex_along_m / C_M_PER_NS, 0.0)
    cascades = Cascades(
        np.concatenate([near, track[row]]),
        np.concatenate([drawn.vertex_m[near], nearest[row] + along[:, None] * travel[row]]),
        np.concatenate([drawn.travel[near], travel[row]]),
        np.concatenate([vertex_ns[near], along / C_M_PER_NS]),
        np.concatenate([drawn.cascade_gev[near], loss_gev]),
    )
    pairs = [track_pairs(tracks, site), cascade_pairs(cascades, site)]
    return concatenate_pairs(pairs), at_array


def _promising(pairs: Pairs, owner: Ints, least_pe: float) -> Pairs:
    """Drop events whose light is hopeless before any photon is drawn."""
    event = owner[pairs.event]
    total = np.bincount(event, weights=pairs.expected_pe, minlength=1)
    keep = total[event] >= least_pe
    return Pairs(**{f.name: getattr(pairs, f.name)[keep] for f in fields(Pairs)})


@dataclass
class _OwnLight:
    """Photons of V visible events, each from its first one on, with the source of each.

    source: (H,) int64 row of the source.  row_of_source: (sources,) int64 visible event, or -1.
    """

    photons: Photons
    source: Ints
    row_of_source: Ints


def _from_time_zero(photons: Photons, owner: Ints, visible: Ints) -> _OwnLight:
    """Renumber the visible events and start each at time zero."""
    row = np.full(len(owner), -1, dtype=np.int64)
    row[visible] = np.arange(len(visible))
    row_of_source = row[owner]
    keep = row_of_source[photons.event] >= 0
    source, time = photons.event[keep], photons.time_ns[keep]
    event = row_of_source[source]
    first = np.full(len(visible), np.inf)
    np.minimum.at(first, event, time)
    own = Photons(
        event, photons.sensor[keep], time - first[event], photons.pe[keep], photons.dark[keep]
    )
    return _OwnLight(own, source, row_of_source)


def _hits(
    own: Photons, n_events: int, by_ion: bool, site: Site, rng: np.random.Generator
) -> Photons:
    """Add noise and afterpulses."""
    last = np.full(n_events, -np.inf)
    np.maximum.at(last, own.event, own.time_ns)
    noise = draw_noise(np.zeros(n_events), last, site, rng)
    return join([own, draw_afterpulses(own, rng, by_ion), noise])


def _light_read_out(
    readout: Readout, own: _OwnLight, origin: Floats, n_events: int
) -> tuple[Floats, Floats, Floats]:
    """Add up the light inside each readout by its source: (V,) neutrino, (V,) muons, p.e.

    origin: (sources, 3), NaN for neutrinos. Also returns (V, 3) origin of the brightest bundle.
    """
    start, end = np.full(n_events, np.inf), np.full(n_events, -np.inf)
    start[readout.triggered], end[readout.triggered] = readout.start_ns, readout.end_ns
    event, time = own.photons.event, own.photons.time_ns
    inside = (time >= start[event]) & (time <= end[event])
    pe = np.bincount(own.source[inside], own.photons.pe[inside], minlength=len(origin))
    of_muon, row = ~np.isnan(origin[:, 0]), own.row_of_source
    seen = row >= 0
    neutrino_pe, muon_pe = (
        np.bincount(row[kind & seen], pe[kind & seen], minlength=n_events).astype(np.float64)
        for kind in (~of_muon, of_muon)
    )
    bundle = np.flatnonzero(of_muon & seen & (pe > 0))
    # the brightest is written last
    bundle = bundle[np.argsort(pe[bundle], kind="stable")]
    brightest = np.full((n_events, 3), np.nan)
    brightest[row[bundle]] = origin[bundle]
    return neutrino_pe, muon_pe, brightest


def _collect(
    readout: Readout,
    drawn: Interactions,
    muon_gev: Floats,
    light: tuple[Floats, Floats, Floats],
    n_tried: int,
    site: Site,
) -> SimulatedEvents:
    rows = readout.triggered
    neutrino_pe, muon_pe, muon_origin = light
    return SimulatedEvents(
        n_pulses=np.bincount(readout.event, minlength=len(muon_gev))[rows],
        sensor_id=site.sensors.sensor_id[readout.sensor],
        time_ns=readout.time_ns,
        charge_pe=quantised(readout.charge_pe),
        auxiliary=~readout.hlc,
        dark=readout.dark,
        truth=drawn.take(rows),
        muon_at_array_gev=muon_gev[rows],
        neutrino_pe=neutrino_pe[rows],
        muon_pe=muon_pe[rows],
        muon_origin=muon_origin[rows],
        n_tried=n_tried,
        n_outside=int(readout.n_outside.sum()),
    )
