"""Photons and dark hits: when each is seen, with the tricks that photomultipliers play."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from iceaggr.detector import C_M_PER_NS, ICE
from iceaggr.events.simulation.ice import Floats, Ints, Site
from iceaggr.events.simulation.light import SHOWER_STEP_M
from iceaggr.events.simulation.pairs import Pairs

_JITTER_NS = 2.0
"""Spread of the PMT transit time. Source: IceTray PMTRes, main peak."""
_LATE_SHARE, _PRE_SHARE, _AFTER_PER_PE = 0.035, 0.003, 0.06
"""Late pulses, prepulses and afterpulses. Source: arXiv:1612.05093, PMT section."""
_PRE_NS, _PRE_PE = -32.0, 0.05
_POISSON_HZ = 250.0
_BURST_HZ, _HITS_PER_BURST = 310.0, 3.5
"""Uncorrelated and burst noise of a standard DOM. Source: arXiv:1612.05093."""
_BURST_LOG10_S, _BURST_SPREAD = -6.0, 0.85
_WATER_HZ = 1_000.0
"""Noise of a module in the sea, Poisson: decays of potassium-40 that two of its photomultipliers
see together. Source: order of magnitude of KM3NeT's coincidence rate, arXiv:1601.07459."""
_RECORDED_SHARE = 0.66
"""Dark hits that pass discriminator and dead time, measured here: published rates count those."""
_ABOVE_THRESHOLD = 0.87
"""Single hits that pass the discriminator, measured here; without bursts no dead time matters."""
_HQE_NOISE = 780.0 / 560.0
_NOISE_MARGIN_NS = 700.0
_BURST_LEAD_NS = 15_000.0


@dataclass
class Photons:
    """H detected photons. event, sensor: (H,) int64 rows; time_ns: (H,); pe: (H,) mean charge.

    dark: (H,) bool, not light of the event
    """

    event: Ints
    sensor: Ints
    time_ns: Floats
    pe: Floats
    dark: npt.NDArray[np.bool_]


def join(parts: list[Photons]) -> Photons:
    """Join photons of several origins."""
    return Photons(
        np.concatenate([p.event for p in parts]),
        np.concatenate([p.sensor for p in parts]),
        np.concatenate([p.time_ns for p in parts]),
        np.concatenate([p.pe for p in parts]),
        np.concatenate([p.dark for p in parts]),
    )


def draw_photons(pairs: Pairs, max_photons: int, site: Site, rng: np.random.Generator) -> Photons:
    """Draw the photons of each pair: Poisson numbers, Pandel delays, shower length, jitter.

    Where more than max_photons are expected, that many are drawn and each weighs more.
    """
    weight = np.maximum(1.0, pairs.expected_pe / max_photons)
    pair = np.repeat(np.arange(len(weight)), rng.poisson(pairs.expected_pe / weight))
    n = len(pair)
    delay = rng.standard_gamma(pairs.xi[pair]) / pairs.rho_per_ns[pair]
    time = pairs.arrival_ns[pair] + delay + _JITTER_NS * rng.standard_normal(n)
    elongated = np.flatnonzero(pairs.shape[pair] > 0)
    time[elongated] += _shower_length_ns(pairs, pair[elongated], site, rng)
    pe = weight[pair]
    kind = rng.random(n)
    late = np.flatnonzero(kind < _LATE_SHARE)
    time[late] += rng.uniform(25.0, 160.0, len(late))
    early = np.flatnonzero(kind > 1.0 - _PRE_SHARE)
    time[early] += _PRE_NS
    pe[early] *= _PRE_PE
    return Photons(pairs.event[pair], pairs.sensor[pair], time, pe, np.zeros(n, bool))


def _shower_length_ns(pairs: Pairs, pair: Ints, site: Site, rng: np.random.Generator) -> Floats:
    """Shift arrival for light from before or behind the mean point of the shower, (H,) ns."""
    shape, distance = pairs.shape[pair], pairs.distance_m[pair]
    ahead = (rng.standard_gamma(shape) - shape) * SHOWER_STEP_M / site.matter
    square = distance**2 - 2.0 * ahead * distance * pairs.cosine[pair] + ahead**2
    path = np.sqrt(np.maximum(square, 0.0))
    return np.asarray((ahead + site.medium.n_group * (path - distance)) / C_M_PER_NS)


_AFTER_WEIGHT, _AFTER_MEAN_NS, _AFTER_SPREAD_NS = np.array(
    [
        (10.0, 500.0, 200.0),
        (2.03, 540.0, 20.0),
        (3.96, 660.0, 20.0),
        (6.5, 1_100.0, 100.0),
        (4.5, 1_300.0, 200.0),
        (8.5, 1_650.0, 225.0),
        (8.95, 2_075.0, 300.0),
        (5.15, 2_850.0, 500.0),
        (3.0, 4_750.0, 700.0),
        (5.0, 6_150.3, 400.0),
        (17.442, 7_833.4, 944.59),
    ]
).T
"""Peaks of the afterpulses, one for each kind of ion. Source: IceTray PMTResponseSimulator, from
measurements; their sum is the published one."""


def draw_afterpulses(photons: Photons, rng: np.random.Generator, by_ion: bool = False) -> Photons:
    """Draw afterpulses: of each kind of ion, or simply 6 +- 2 us after their photons.

    Source: arXiv:1612.05093 for the simple form and for their number.
    """
    parent = np.repeat(np.arange(len(photons.pe)), rng.poisson(_AFTER_PER_PE * photons.pe))
    mean_ns, spread_ns = np.float64(6_000.0), np.float64(2_000.0)
    if by_ion:
        share = np.cumsum(_AFTER_WEIGHT) / _AFTER_WEIGHT.sum()
        ion = np.searchsorted(share, rng.random(len(parent)))
        mean_ns, spread_ns = _AFTER_MEAN_NS[ion], _AFTER_SPREAD_NS[ion]
    delay = mean_ns + spread_ns * rng.standard_normal(len(parent))
    delay = np.abs(delay) if by_ion else np.clip(delay, 300.0, 11_000.0)
    return Photons(
        photons.event[parent],
        photons.sensor[parent],
        photons.time_ns[parent] + delay,
        np.ones(len(parent)),
        photons.dark[parent],
    )


def draw_noise(first_ns: Floats, last_ns: Floats, site: Site, rng: np.random.Generator) -> Photons:
    """Draw dark hits from before the first to after the last photon of each event.

    first_ns, last_ns: (E,) photon times. Single hits are Poisson; bursts on one DOM follow
    each other at log-normal intervals, so that neighbouring hits in time share a DOM.
    """
    first = first_ns - (site.readout_before_ns + _NOISE_MARGIN_NS)
    last = last_ns + (site.readout_after_ns + _NOISE_MARGIN_NS)
    if site.medium != ICE:
        return _dark_hits(first, last, _WATER_HZ / _ABOVE_THRESHOLD, site, rng)
    single = _dark_hits(first, last, _POISSON_HZ / _RECORDED_SHARE, site, rng)
    opening = _dark_hits(
        first - _BURST_LEAD_NS, last, _BURST_HZ / _HITS_PER_BURST / _RECORDED_SHARE, site, rng
    )
    # the rest of the burst: at least one hit, the gaps add up along the burst
    more = rng.poisson(_HITS_PER_BURST - 1.0, len(opening.pe))
    parent = np.repeat(np.arange(len(more)), more)
    gap = 10.0 ** (9.0 + _BURST_LOG10_S + _BURST_SPREAD * rng.standard_normal(len(parent)))
    total = np.cumsum(gap)
    before = np.concatenate([[0.0], total])[np.cumsum(more) - more]
    time = opening.time_ns[parent] + total - before[parent]
    n = len(parent)
    rest = Photons(
        opening.event[parent], opening.sensor[parent], time, np.ones(n), np.ones(n, bool)
    )
    dark = join([single, opening, rest])
    keep = (dark.time_ns >= first[dark.event]) & (dark.time_ns <= last[dark.event])
    return Photons(**{f.name: getattr(dark, f.name)[keep] for f in fields(Photons)})


def _dark_hits(
    first: Floats, last: Floats, rate_hz: float, site: Site, rng: np.random.Generator
) -> Photons:
    noisiness = np.where(site.sensors.efficiency > 1.0, _HQE_NOISE, 1.0)
    share = np.cumsum(noisiness)
    mean = (last - first) * 1e-9 * rate_hz * share[-1]
    event = np.repeat(np.arange(len(first)), rng.poisson(mean))
    u = rng.random((2, len(event)))
    sensor = np.searchsorted(share, u[0] * share[-1])
    time = first[event] + u[1] * (last - first)[event]
    n = len(event)
    return Photons(event, sensor.astype(np.int64), time, np.ones(n), np.ones(n, bool))
