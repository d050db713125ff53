"""Atmospheric muons: the bundles that cross the detector while an event is read out.

Cosmic rays make them in the air above the Pole all the time. Each event gets those of a fixed time
around its neutrino, as the official simulation merges them; bundles are parallel, at one time.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from iceaggr.detector import C_M_PER_NS, ICE
from iceaggr.events.simulation.ice import Floats, Ints, icecube_site
from iceaggr.events.simulation.light import draw_losses, muon_range_m
from iceaggr.events.simulation.pairs import (
    Cascades,
    Pairs,
    Tracks,
    cascade_pairs,
    concatenate_pairs,
    track_pairs,
)

TOP_Z_M = 500.0
"""Bundles are drawn on the level of the uppermost sensors and lose energy from there."""
TOP_DEPTH_KM_WE = (1.94807 - TOP_Z_M / 1_000.0) * ICE.density
"""1.33 km of water equivalent; the formulas below were fitted from 1.5 to 5 km."""
BUNDLE_RADIUS_M = 800.0
"""Bundles pass through a disk of this radius about the centre, square to their way."""
MAX_MUONS = 60
_MIN_COS_ZENITH = 0.03
_MIN_LOSS_GEV = 0.3
_N_ZENITH_STEPS = 2_000
_MIN_RADIUS_M = 0.1

# Constants of the parameterisation of single and multiple muons in deep water or ice.
# Source: Becherini et al. 2006, Astropart. Phys. 25, 1 (hep-ph/0507228), as in MUPAGE, which
# adds nu(h) of doi 10.1016/j.cpc.2009.12.017. h: depth in km w.e., m: muons of the bundle, at
# most 4 in the formulas of distance and energy, r: metres from the axis.
_BETA_PER_KM_WE = 0.42


@dataclass(frozen=True)
class Bundles:
    """B bundles and their M muons.

    event: (B,) int64 row of the event.  time_ns: (B,) when the bundle is nearest to the centre
    origin: (B, 3) unit vector to where it comes from.  bundle: (M,) int64 row of the muon's bundle
    nearest_m: (M, 3) metres, nearest point of the muon's line to the centre
    start_m: (M,) metre along the line where it has energy_gev: (M,) GeV.
    """

    event: Ints
    time_ns: Floats
    origin: Floats
    bundle: Ints
    nearest_m: Floats
    start_m: Floats
    energy_gev: Floats


def multiplicity_index(cos_zenith: Floats) -> Floats:
    """Index nu of the flux of bundles of m muons, which falls as m^-nu; (K,) -> (K,)."""
    h = TOP_DEPTH_KM_WE
    nu_vertical = -0.0771 * h**2 + 0.524 * h + 2.068
    return np.asarray(nu_vertical * np.exp(0.03 * np.exp(0.47 * h) / cos_zenith))


def single_flux(cos_zenith: Floats) -> Floats:
    """Flux of bundles of one muon, per m2 s sr, at the level of the uppermost sensors."""
    h = TOP_DEPTH_KM_WE
    slope = -0.581 * h + 0.034
    return np.asarray(0.0072 * h**-1.927 * cos_zenith * np.exp(slope / cos_zenith))


def bundle_flux(cos_zenith: Floats) -> Floats:
    """Flux of bundles of any number of muons, per m2 s sr; (K,) -> (K,)."""
    return np.asarray(single_flux(cos_zenith) * _multiplicity_weights(cos_zenith).sum(axis=1))


@cache
def _zenith_table() -> tuple[Floats, Floats, float]:
    """Tabulate the zenith spectrum: cosines, cumulative share, and the rate in Hz."""
    cosine = np.linspace(_MIN_COS_ZENITH, 1.0, _N_ZENITH_STEPS)
    flux = bundle_flux(cosine)
    step = np.diff(cosine) * 0.5 * (flux[1:] + flux[:-1])
    running = np.concatenate([[0.0], np.cumsum(step)])
    rate_hz = 2.0 * np.pi * float(running[-1]) * np.pi * BUNDLE_RADIUS_M**2
    return cosine, running / running[-1], rate_hz


def bundle_rate_hz() -> float:
    """Give the rate of bundles through the disk about the detector, in Hz."""
    return _zenith_table()[2]


def draw_bundles(n_events: int, window_us: float, rng: np.random.Generator) -> Bundles:
    """Draw the bundles of window_us microseconds around each of n_events neutrinos.

    Source: the official simulation merges a Poisson number of air showers, evenly over a window
    centred on the neutrino, by default 40 us (IceTray polyplopia, PoissonMerger).
    """
    n = np.zeros(n_events, np.int64)
    if window_us > 0:
        n = rng.poisson(bundle_rate_hz() * window_us * 1e-6, n_events)
    event = np.repeat(np.arange(n_events), n)
    time_ns = (rng.random(len(event)) - 0.5) * window_us * 1_000.0
    cosines, share, _ = _zenith_table()
    cosine = np.interp(rng.random(len(event)), share, cosines)
    origin, east, up = _frame(cosine, 2.0 * np.pi * rng.random(len(event)))
    radius = BUNDLE_RADIUS_M * np.sqrt(rng.random(len(event)))
    axis = _in_plane(radius, 2.0 * np.pi * rng.random(len(event)), east, up)
    n_muons = _multiplicities(cosine, rng)
    bundle = np.repeat(np.arange(len(event)), n_muons)
    several = n_muons[bundle] > 1
    r = np.where(several, _distances(cosine[bundle], n_muons[bundle], rng), 0.0)
    turn = 2.0 * np.pi * rng.random(len(bundle))
    nearest = axis[bundle] + _in_plane(r, turn, east[bundle], up[bundle])
    start = -(TOP_Z_M - nearest[:, 2]) / cosine[bundle]
    energy = _energies_gev(cosine[bundle], n_muons[bundle], r, rng)
    return Bundles(event, time_ns, origin, bundle, nearest, start, energy)


def bundle_pairs(bundles: Bundles, rng: np.random.Generator) -> Pairs:
    """Pair the muons and their losses with sensors; `event` of the pairs is the row of the bundle.

    Times are those of the bundles: zero is the time zero of the event.
    """
    site = icecube_site()
    reach_m = site.extent.reach_m
    first = np.maximum(bundles.start_m, -reach_m)
    last = np.minimum(bundles.start_m + muon_range_m(bundles.energy_gev), reach_m)
    reaches = np.flatnonzero(last > first)
    bundle, nearest = bundles.bundle[reaches], bundles.nearest_m[reaches]
    first, last = first[reaches], last[reaches]
    start, energy = bundles.start_m[reaches], bundles.energy_gev[reaches]
    travel = -bundles.origin[bundle]
    losses = draw_losses(energy, start, first, last, rng)
    bright = losses.energy_gev > _MIN_LOSS_GEV
    row, along = losses.row[bright], losses.along_m[bright]
    cascades = Cascades(
        bundle[row],
        nearest[row] + along[:, None] * travel[row],
        travel[row],
        along / C_M_PER_NS,
        losses.energy_gev[bright],
    )
    tracks = Tracks(bundle, nearest, travel, start, first, last, energy)
    pairs = concatenate_pairs([track_pairs(tracks, site), cascade_pairs(cascades, site)])
    pairs.arrival_ns = pairs.arrival_ns + bundles.time_ns[pairs.event]
    return pairs


def _multiplicity_weights(cos_zenith: Floats) -> Floats:
    """Weigh bundles of 1 to MAX_MUONS muons against those of one: (K, MAX_MUONS)."""
    n_muons = np.arange(1, MAX_MUONS + 1)
    return np.asarray(n_muons[None, :] ** -multiplicity_index(cos_zenith)[:, None])


def _multiplicities(cos_zenith: Floats, rng: np.random.Generator) -> Ints:
    running = np.cumsum(_multiplicity_weights(cos_zenith), axis=1)
    u = rng.random(len(cos_zenith)) * running[:, -1]
    return np.asarray(1 + (running < u[:, None]).sum(axis=1))


def lateral_spectrum(cos_zenith: Floats, n_muons: Ints) -> tuple[Floats, Floats]:
    """Index alpha and mean in metres of dN/dr ~ r / (r + r0)^alpha; all (M,)."""
    h, m = TOP_DEPTH_KM_WE, np.minimum(n_muons, 4)
    shrink = 1.0 / (np.exp((np.arccos(cos_zenith) - 1.3) * 10.4) + 1.0)
    mean = (-1.786 * m + 28.26) * h**-1.06 * shrink
    alpha = (-0.448 * m + 4.969) * np.exp((0.0194 * m + 0.276) * h)
    return np.asarray(alpha), np.asarray(mean)


def _distances(cos_zenith: Floats, n_muons: Ints, rng: np.random.Generator) -> Floats:
    """Draw distances from the axis, (M,) m, as a beta prime density; r0 is (alpha - 3) mean / 2."""
    alpha, mean = lateral_spectrum(cos_zenith, n_muons)
    ratio = rng.standard_gamma(2.0, len(alpha)) / rng.standard_gamma(alpha - 2.0)
    return np.maximum(ratio * 0.5 * (alpha - 3.0) * mean, _MIN_RADIUS_M)


def energy_spectrum(cos_zenith: Floats, n_muons: Ints, r_m: Floats) -> tuple[Floats, Floats]:
    """Index gamma and scale in TeV of dN/dE ~ (E + scale)^-gamma; all (M,)."""
    h, m = TOP_DEPTH_KM_WE, np.minimum(n_muons, 4)
    depth = 1.0 - np.exp(-_BETA_PER_KM_WE * h / cos_zenith)
    one = -0.232 * np.log(h) + 3.961
    one_tev = 0.0304 * np.exp(0.359 * h) / cos_zenith - 0.0077 * h + 0.659
    r = np.maximum(r_m, _MIN_RADIUS_M)
    peak = (0.0407 * m + 0.0283) * h - 0.312 * m + 6.124
    several = (0.0033 * h + 0.0079) * r + peak * (1.0 - 0.5 * np.exp((0.0543 * h - 0.365) * r))
    several_tev = (-0.069 * h + 0.488) * np.exp(-0.117 * r) * np.arccos(cos_zenith)
    several_tev += (-0.398 * h + 3.955) * r ** (0.012 * h - 0.35)
    alone = n_muons == 1
    return np.where(alone, one, several), np.where(alone, one_tev, several_tev) * depth


def _energies_gev(
    cos_zenith: Floats, n_muons: Ints, r_m: Floats, rng: np.random.Generator
) -> Floats:
    gamma, scale_tev = energy_spectrum(cos_zenith, n_muons, r_m)
    u = rng.random(len(gamma))
    return np.asarray(1_000.0 * scale_tev * ((1.0 - u) ** (-1.0 / (gamma - 1.0)) - 1.0))


def _frame(cosine: Floats, azimuth: Floats) -> tuple[Floats, Floats, Floats]:
    """Build unit vectors to the origin, level, and across both; three (B, 3)."""
    sine = np.sqrt(1.0 - cosine**2)
    x, y, zero = np.cos(azimuth), np.sin(azimuth), np.zeros_like(cosine)
    origin = np.column_stack([x * sine, y * sine, cosine])
    return (
        origin,
        np.column_stack([-y, x, zero]),
        np.column_stack([-x * cosine, -y * cosine, sine]),
    )


def _in_plane(radius: Floats, angle: Floats, first: Floats, second: Floats) -> Floats:
    return np.asarray(
        (radius * np.cos(angle))[:, None] * first + (radius * np.sin(angle))[:, None] * second
    )
