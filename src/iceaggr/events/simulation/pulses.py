"""Pulses as an unfolded waveform gives them, local coincidence, and what an SLC hit keeps."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from iceaggr.events.simulation.ice import Floats, Ints, Site
from iceaggr.events.simulation.photons import Photons

_FINE_NS, _COARSE_NS, _FINE_WINDOW_NS = 10.0, 50.0, 420.0
"""Photons nearer than this become one pulse: fast digitiser for 420 ns, slow one after it."""
_QUIET_NS = 1_000.0
"""A DOM silent for so long starts its fast digitiser anew."""
_LOW_SHARE, _LOW_SCALE_PE, _PEAK_WIDTH_PE = 0.3, 0.4, 0.3
"""Charge of one photo-electron: exponential low part and a Gaussian at 1 p.e."""
_PE_SPREAD = 0.45
_DISCRIMINATOR_PE = 0.25
_SATURATION_PE = 2_800.0
COINCIDENCE_NS = 1_000.0
LAUNCH_NS = 6_400.0
"""Length of a full readout of one DOM. Source: arXiv:1612.05093."""
_SLC_NS = 75.0
"""An SLC hit keeps three samples of the slow digitiser, 25 ns each."""
_SLC_TIME_BLUR_NS, _SLC_CHARGE_BLUR = 8.0, 0.1
_TIME_BITS = 24
_TIME_UNITS_PER_NS = 16.0


@dataclass
class Pulses:
    """N pulses sorted by event, sensor and time (time up to the blur of SLC hits).

    event, sensor: (N,) int64 rows; time_ns, charge_pe: (N,) float64; hlc: (N,) bool, in local
    coincidence; first_hlc: (N,) bool, opens a coincident readout of its DOM
    dark: (N,) bool, none of its photons is light of the event
    """

    event: Ints
    sensor: Ints
    time_ns: Floats
    charge_pe: Floats
    hlc: npt.NDArray[np.bool_]
    first_hlc: npt.NDArray[np.bool_]
    dark: npt.NDArray[np.bool_]

    def take(self, rows: npt.NDArray[np.int64] | npt.NDArray[np.bool_]) -> Pulses:
        """Select pulses by row or mask."""
        return Pulses(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})


def form_pulses(photons: Photons, site: Site, rng: np.random.Generator) -> Pulses:
    """Turn photons into pulses with coincidence flags; below-threshold SLC hits vanish."""
    n_sensors = site.sensors.n_sensors
    order = _order_of_photons(photons, n_sensors)
    key = photons.event[order] * n_sensors + photons.sensor[order]
    time, pe = photons.time_ns[order], photons.pe[order]
    start = _pulse_starts(key, time)
    charge = np.add.reduceat(_photon_charges(pe, rng), start) if len(start) else np.zeros(0)
    dark = np.logical_and.reduceat(photons.dark[order], start) if len(start) else photons.dark
    charge = charge / (1.0 + charge / _SATURATION_PE)
    key, time = key[start], time[start]
    near = _has_coincident_neighbour(key, time, charge >= _DISCRIMINATOR_PE, site)
    hlc, first_hlc = _readouts(key, time, near)
    keep = hlc | ((charge >= _DISCRIMINATOR_PE) & ~_follows(key, time))
    slc = ~hlc
    blur = rng.standard_normal((2, len(time)))
    time = time + np.where(slc, _SLC_TIME_BLUR_NS * blur[0], 0.0)
    charge = charge * np.where(slc, np.exp(_SLC_CHARGE_BLUR * blur[1]), 1.0)
    return Pulses(key // n_sensors, key % n_sensors, time, charge, hlc, first_hlc, dark).take(keep)


def quantised(charge_pe: Floats) -> Floats:
    """Round charges to 0.025 + 0.05 k, and large ones to 11 bits, as the public files hold them.

    charge_pe: (N,) p.e. Returns (N,) float64.
    """
    step = np.maximum(1.0, np.ceil(charge_pe / 2048.0 / 0.05))
    k = np.maximum(np.rint((charge_pe - 0.025) / 0.05 / step), 0.0) * step
    return np.round(0.025 + 0.05 * k, 3)


def _order_of_photons(photons: Photons, n_sensors: int) -> Ints:
    """Sort by event, sensor, time in one pass over a combined integer key."""
    key = photons.event * n_sensors + photons.sensor
    ticks = np.rint((photons.time_ns - photons.time_ns.min(initial=0.0)) * _TIME_UNITS_PER_NS)
    assert ticks.max(initial=0.0) < 2.0**_TIME_BITS, "photons of one block span more than 1 ms"
    return np.argsort((key << _TIME_BITS) | ticks.astype(np.int64), kind="stable")


def _pulse_starts(key: Ints, time: Floats) -> Ints:
    """Find the photons that open a pulse."""
    if len(key) == 0:
        return np.zeros(0, np.int64)
    new_dom = np.concatenate([[True], key[1:] != key[:-1]])
    quiet = new_dom | np.concatenate([[True], np.diff(time) > _QUIET_NS])
    since = time - time[_latest(quiet)]
    cell = np.where(
        since < _FINE_WINDOW_NS,
        since // _FINE_NS,
        1_000.0 + (since - _FINE_WINDOW_NS) // _COARSE_NS,
    )
    opens = quiet | np.concatenate([[True], cell[1:] != cell[:-1]])
    return np.flatnonzero(opens)


def _latest(mark: npt.NDArray[np.bool_]) -> Ints:
    """Give each row the latest marked row at or before it; row 0 counts as marked."""
    return np.maximum.accumulate(np.where(mark, np.arange(len(mark)), 0))


def _photon_charges(pe: Floats, rng: np.random.Generator) -> Floats:
    """Draw charges: single photo-electrons one by one, heavier packets by their mean and width."""
    n = len(pe)
    peak = 1.0 + _PEAK_WIDTH_PE * rng.standard_normal(n)
    u = rng.random(n)
    low = u < _LOW_SHARE
    # the same uniform number, rescaled, serves the exponential part
    single = np.where(low, -_LOW_SCALE_PE * np.log1p(-u * (1 - 1e-9) / _LOW_SHARE * low), peak)
    mean = _LOW_SHARE * _LOW_SCALE_PE + 1.0 - _LOW_SHARE
    packet = mean * pe * (1.0 + _PE_SPREAD * (peak - 1.0) / _PEAK_WIDTH_PE / np.sqrt(pe))
    return np.maximum(np.where(pe == 1.0, single, packet), 0.01)


def _has_coincident_neighbour(
    key: Ints, time: Floats, launching: npt.NDArray[np.bool_], site: Site
) -> npt.NDArray[np.bool_]:
    """Mark launching pulses with another on a nearest or next-to-nearest DOM within 1 us.

    Source: arXiv:1612.05093, local coincidence on the same string.
    """
    found = np.zeros(len(key), dtype=bool)
    at = np.flatnonzero(launching)
    if len(at) == 0:
        return found
    sensors = site.sensors
    origin = time.min()
    key, ticks = key[at], ((time[at] - origin) * _TIME_UNITS_PER_NS).astype(np.int64)
    window = int(COINCIDENCE_NS * _TIME_UNITS_PER_NS)
    combined = (key << _TIME_BITS) | ticks
    # SLC blur comes later, so the keys are still sorted
    event_key, sensor = key - key % sensors.n_sensors, key % sensors.n_sensors
    near = np.zeros(len(at), dtype=bool)
    for neighbour in sensors.neighbour:
        other = neighbour[sensor]
        target = (event_key + np.maximum(other, 0)) << _TIME_BITS
        low = target | np.maximum(ticks - window, 0)
        slot = np.minimum(np.searchsorted(combined, low), len(combined) - 1)
        hit = (combined[slot] >= low) & (combined[slot] <= (target | ticks) + window)
        # a window reaching past the last tick of one DOM must not touch the next DOM
        near |= hit & (key[slot] == event_key + other) & (other >= 0)
    found[at] = near
    return found


def _readouts(
    key: Ints, time: Floats, near: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Spread coincidence over the 6.4 us readout that it opens: (N,) hlc and first_hlc."""
    if len(key) == 0:
        return near, near
    latest = _latest(near)
    within = near[latest] & (key == key[latest]) & (time - time[latest] <= LAUNCH_NS)
    before = np.concatenate([[False], within[:-1] & (key[1:] == key[:-1])])
    return within, near & ~before


def _follows(key: Ints, time: Floats) -> npt.NDArray[np.bool_]:
    """Mark pulses beyond the three samples that an SLC hit keeps, until the DOM is quiet again."""
    if len(key) == 0:
        return np.zeros(0, dtype=bool)
    new_dom = np.concatenate([[True], key[1:] != key[:-1]])
    opens = new_dom | np.concatenate([[True], np.diff(time) > _QUIET_NS])
    return np.asarray(time - time[_latest(opens)] > _SLC_NS)


# The multiplicity trigger of the site, the readout window, and the event's clock.

_TRIGGER_TIME_NS, _TRIGGER_SPREAD_NS, _TRIGGER_REACH_NS = 9_855.0, 50.0, 140.0
"""Place of the trigger on the event's clock, read off the published first-pulse quartiles."""
_LATE_SHARE, _LATE_MEAN_NS, _LATE_MAX_NS = 0.03, 15_000.0, 60_000.0
"""Events that are a later part of a longer merged readout: they keep its clock, and what came
before belongs to another part. Read off the published tail of the first-pulse time."""


@dataclass
class Readout:
    """Pulses of triggered events only, sorted by event and time.

    event: (N,) int64 row of the event before the trigger; time_ns: (N,) int64; sensor: (N,) int64
    row of the sensor; charge_pe: (N,) float64; hlc, dark: (N,) bool
    triggered: (T,) int64 ascending rows of the events that triggered
    n_outside: (T,) int64 pulses of each that fell outside its readout window.
    """

    event: Ints
    time_ns: Ints
    sensor: Ints
    charge_pe: Floats
    hlc: npt.NDArray[np.bool_]
    dark: npt.NDArray[np.bool_]
    triggered: Ints
    n_outside: Ints


def read_out(pulses: Pulses, n_events: int, site: Site, rng: np.random.Generator) -> Readout:
    """Find the triggers and keep what each one reads out."""
    first, last = trigger_times(pulses, n_events, site)
    clock, before = _event_clock(n_events, site, rng)
    start = first - before
    inside = (pulses.time_ns >= start[pulses.event]) & (
        pulses.time_ns <= last[pulses.event] + site.readout_after_ns
    )
    triggered = np.flatnonzero(np.isfinite(first))
    outside = np.bincount(pulses.event[~inside], minlength=n_events)[triggered]
    kept = pulses.take(inside)
    time = np.rint(kept.time_ns - first[kept.event] + clock[kept.event]).astype(np.int64)
    order = np.lexsort((kept.sensor, time, kept.event))
    return Readout(
        event=kept.event[order],
        time_ns=time[order],
        sensor=kept.sensor[order],
        charge_pe=kept.charge_pe[order],
        hlc=kept.hlc[order],
        dark=kept.dark[order],
        triggered=triggered,
        n_outside=outside,
    )


def trigger_times(pulses: Pulses, n_events: int, site: Site) -> tuple[Floats, Floats]:
    """Find the first hit of the first trigger and the last hit of the last one.

    Returns two (n_events,) float64 in ns; an event without a trigger has inf and -inf.
    """
    first, last = np.full(n_events, np.inf), np.full(n_events, -np.inf)
    at = np.flatnonzero(pulses.first_hlc)
    order = np.lexsort((pulses.time_ns[at], pulses.event[at]))
    event, time = pulses.event[at][order], pulses.time_ns[at][order]
    reach = site.n_trigger_hits - 1
    if len(time) <= reach:
        return first, last
    within = time[reach:] - time[:-reach] <= site.trigger_window_ns
    fires = (event[reach:] == event[:-reach]) & within
    opening = np.flatnonzero(fires)
    np.minimum.at(first, event[opening], time[opening])
    np.maximum.at(last, event[opening], time[opening + reach])
    return first, last


def _event_clock(n_events: int, site: Site, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Draw the trigger's time on the event's clock and how far the readout reaches back, (E,).

    Other detectors than IceCube have no merged readouts: their clock begins with the readout.
    """
    reach_back = site.readout_before_ns
    if not site.is_icecube:
        return np.full(n_events, reach_back), np.full(n_events, reach_back)
    jitter = _TRIGGER_SPREAD_NS * rng.standard_normal(n_events)
    clock = _TRIGGER_TIME_NS + np.clip(jitter, -_TRIGGER_REACH_NS, _TRIGGER_REACH_NS)
    u = rng.random((3, n_events))
    late = u[0] < _LATE_SHARE
    shift = np.minimum(-_LATE_MEAN_NS * np.log1p(-u[1]), _LATE_MAX_NS)
    before = np.where(late, 300.0 + u[2] * (reach_back - 300.0), reach_back)
    return clock + np.where(late, shift, 0.0), before
