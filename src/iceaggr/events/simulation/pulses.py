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
"""Relative spread of a packet times the root of its photo-electrons; one by one they have 0.53."""
_DISCRIMINATOR_PE = 0.25
_SATURATION_PE = 2_800.0
"""Where half of the charge is lost. Chosen: the largest published charge is 2762 p.e."""
COINCIDENCE_NS = 1_000.0
LAUNCH_NS = 6_400.0
"""Length of a full readout of one DOM. Source: arXiv:1612.05093."""
SLC_BUSY_NS = 1_300.0
"""A module without coincidence waits 350 ns for it and clears for 950 ns.
Source: IceTray DOMLauncher, lcWait and ATWDClearTime."""
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


def form_pulses(
    photons: Photons, site: Site, rng: np.random.Generator, launches: bool = False
) -> Pulses:
    """Turn photons into pulses with coincidence flags; what no module reads out vanishes.

    launches: let each module be busy with what it reads, and ask for coincidence of its launches;
    False = ask for coincidence of pulses, each of which reads its module for the full time.
    """
    n_sensors = site.sensors.n_sensors
    order = _order_of_photons(photons, n_sensors)
    key = photons.event[order] * n_sensors + photons.sensor[order]
    time, pe = photons.time_ns[order], photons.pe[order]
    start = _pulse_starts(key, time)
    charge = np.add.reduceat(_photon_charges(pe, rng), start) if len(start) else np.zeros(0)
    dark = np.logical_and.reduceat(photons.dark[order], start) if len(start) else photons.dark
    charge = charge / (1.0 + charge / _SATURATION_PE)
    key, time = key[start], time[start]
    loud = charge >= _DISCRIMINATOR_PE
    if launches:
        hlc, first_hlc, keep = _launched(key, time, loud, site)
    else:
        near = _has_coincident_neighbour(key, time, loud, site)
        hlc, first_hlc = _readouts(key, time, near)
        keep = hlc | (loud & ~_follows(key, time))
    slc = ~hlc
    blur = rng.standard_normal((2, len(time)))
    time = time + np.where(slc, _SLC_TIME_BLUR_NS * blur[0], 0.0)
    charge = charge * np.where(slc, np.exp(_SLC_CHARGE_BLUR * blur[1]), 1.0)
    return Pulses(key // n_sensors, key % n_sensors, time, charge, hlc, first_hlc, dark).take(keep)


Mask = npt.NDArray[np.bool_]


def _launched(key: Ints, time: Floats, loud: Mask, site: Site) -> tuple[Mask, Mask, Mask]:
    """Follow each module from launch to launch: (N,) coincident, first of such a launch, read out.

    A loud pulse launches a module that is not busy. With a launch of a neighbour within 1 us it
    reads 6.4 us and is busy as long; without, it keeps three samples and is soon free again.
    """
    if len(key) == 0:
        return loud, loud, loud
    window = np.full(len(key), SLC_BUSY_NS)
    # who is busy depends on who is coincident, and the other way round: the second look settles it
    for _ in range(2):
        launch = _launch_starts(key, time, loud, window)
        near = _has_coincident_neighbour(key, time, launch, site)
        window = np.where(near, LAUNCH_NS, SLC_BUSY_NS)
    opening = _latest(launch)
    since = time - time[opening]
    read = launch[opening] & (key == key[opening])
    hlc = read & near[opening] & (since <= LAUNCH_NS)
    return hlc, near, hlc | (read & ~near[opening] & (since <= _SLC_NS))


def _launch_starts(key: Ints, time: Floats, loud: Mask, window_ns: Floats) -> Mask:
    """Mark the loud pulses that find their module free, when each launch takes window_ns."""
    at = np.flatnonzero(loud)
    starts = np.zeros(len(key), bool)
    if len(at) == 0:
        return starts
    span = float(np.ptp(time)) + 2.0 * LAUNCH_NS
    place = time[at] - time.min() + key[at] * span
    following = np.searchsorted(place, place + window_ns[at], side="right")
    current = np.flatnonzero(np.diff(key[at], prepend=-1))
    last = np.concatenate([current[1:], [len(at)]])
    while len(current):
        starts[at[current]] = True
        current = following[current]
        still = current < last
        current, last = current[still], last[still]
    return starts


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
