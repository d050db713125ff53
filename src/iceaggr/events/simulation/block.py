"""One block of triggered events from one random stream: the unit of parallel work."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
import numpy.typing as npt

from iceaggr.detector import C_M_PER_NS, Detector
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
from iceaggr.events.simulation.pulses import Readout, form_pulses, quantised, read_out

_PHOTONS_SHORT, _EXPECTED_PE_SHORT = 2, 3
"""With so many fewer than the hits of the trigger, chance noise practically never makes one."""
_FIRST_GUESS = 0.4
_MIN_LOSS_GEV = 0.3
_PULSE_ARRAYS = ("sensor_id", "time_ns", "charge_pe", "auxiliary", "dark")


@dataclass
class SimulatedEvents:
    """E triggered events and their N pulses, ready to be written.

    n_pulses: (E,) int64.  sensor_id: (N,) int64.  time_ns: (N,) int64.  charge_pe: (N,) float64
    auxiliary, dark (noise alone): (N,) bool.  truth: the interactions, E rows.
    muon_at_array_gev: (E,) float64, 0 for cascades
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
            muon_at_array_gev=self.muon_at_array_gev[start:stop],
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
    arrays = ("n_pulses", *_PULSE_ARRAYS, "muon_at_array_gev")
    return SimulatedEvents(
        **{name: joined(name) for name in arrays},  # type: ignore[arg-type]
        truth=Interactions(**truth),
        n_tried=sum(part.n_tried for part in parts),
        n_outside=sum(part.n_outside for part in parts),
    )


def _simulate_interactions(
    n: int, config: SimulationConfig, site: Site, rng: np.random.Generator
) -> SimulatedEvents:
    drawn = draw_interactions(n, config, site, rng)
    pairs, muon_gev = _light(drawn, site, rng)
    promising = _promising(pairs, n, site)
    photons = draw_photons(promising, config.max_photons_per_source, site, rng)
    n_needed = site.n_trigger_hits - _PHOTONS_SHORT
    visible = np.flatnonzero(np.bincount(photons.event, minlength=n) >= n_needed)
    seen = _hits(photons, visible, n, site, rng)
    readout = read_out(form_pulses(seen, site, rng), len(visible), site, rng)
    return _collect(readout, drawn.take(visible), muon_gev[visible], n, site)


def _light(drawn: Interactions, site: Site, rng: np.random.Generator) -> tuple[Pairs, Floats]:
    """Pair every source of light with the sensors that see it; also the muon energy at the array.

    Time zero of a track is its nearest point to the centre; that of a cascade its vertex.
    """
    track, reach_m, matter = np.flatnonzero(drawn.is_track), site.extent.reach_m, site.matter
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
    near = np.flatnonzero(~drawn.is_track | (drawn.vertex_along_m > -reach_m))
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


def _promising(pairs: Pairs, n: int, site: Site) -> Pairs:
    """Drop events whose light is hopeless before any photon is drawn."""
    total = np.bincount(pairs.event, weights=pairs.expected_pe, minlength=n)
    keep = total[pairs.event] >= site.n_trigger_hits - _EXPECTED_PE_SHORT
    return Pairs(**{f.name: getattr(pairs, f.name)[keep] for f in fields(Pairs)})


def _hits(photons: Photons, visible: Ints, n: int, site: Site, rng: np.random.Generator) -> Photons:
    """Renumber the visible events, start each at time zero, and add afterpulses and noise."""
    row = np.full(n, -1, dtype=np.int64)
    row[visible] = np.arange(len(visible))
    keep = row[photons.event] >= 0
    event, time = row[photons.event[keep]], photons.time_ns[keep]
    first, last = np.full(len(visible), np.inf), np.full(len(visible), -np.inf)
    np.minimum.at(first, event, time)
    np.maximum.at(last, event, time)
    own = Photons(
        event, photons.sensor[keep], time - first[event], photons.pe[keep], photons.dark[keep]
    )
    noise = draw_noise(np.zeros(len(visible)), last - first, site, rng)
    return join([own, draw_afterpulses(own, rng), noise])


def _collect(
    readout: Readout, drawn: Interactions, muon_gev: Floats, n_tried: int, site: Site
) -> SimulatedEvents:
    rows = readout.triggered
    return SimulatedEvents(
        n_pulses=np.bincount(readout.event, minlength=len(muon_gev))[rows],
        sensor_id=site.sensors.sensor_id[readout.sensor],
        time_ns=readout.time_ns,
        charge_pe=quantised(readout.charge_pe),
        auxiliary=~readout.hlc,
        dark=readout.dark,
        truth=drawn.take(rows),
        muon_at_array_gev=muon_gev[rows],
        n_tried=n_tried,
        n_outside=int(readout.n_outside.sum()),
    )
