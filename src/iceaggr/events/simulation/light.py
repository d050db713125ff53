"""Light yield: how many photo-electrons a sensor expects from a track or a cascade."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from iceaggr.detector import ICE, Medium
from iceaggr.events.simulation.ice import Floats

PHOTONS_PER_M = 2450.0
"""Detectable photons per metre of bare track, folded with the DOM's wavelength acceptance.
Source: PPC (github.com/icecube/ppc)."""
DOM_AREA_M2 = 0.08563
"""Cross-section of a DOM, radius 0.1651 m. Source: PPC."""
CASCADE_M_PER_GEV = 5.321 * 0.910 / 0.9216
"""Track length with the light of one GeV of electromagnetic cascade. Source: PPC f2k.cxx."""
SHOWER_STEP_M = 0.3915 / 0.63207
"""Scale of the longitudinal gamma profile of electrons. Source: PPC f2k.cxx."""
_TILT_EXPONENT, _TILT_SLOPE = 0.39, 2.61
"""Tilt of shower particles from the axis. Source: PPC pro.cu."""
_N_EMISSION_BINS = 200
_ACCEPTANCE = (0.34, 0.16, 0.0, 0.88, 0.0, -1.05, 0.0, 0.35)
"""Angular acceptance: polynomial in the cosine to the PMT axis. Source: PPC spice_ftp-v3m."""
_HADRON_E0, _HADRON_M, _HADRON_F0 = 0.18792, 0.16268, 0.30974
"""Light of hadronic against electromagnetic cascades (pi+). Source: PPC f2k.cxx."""


def cherenkov(medium: Medium) -> tuple[float, float]:
    """Give cosine and sine of the Cherenkov angle."""
    cosine = 1.0 / medium.n_phase
    return cosine, float(np.sqrt(1.0 - cosine**2))


def relative_yield(medium: Medium) -> float:
    """Give the photons of a bare track relative to ice: sin^2 of the Cherenkov angle.

    Source: Frank and Tamm 1937.
    """
    return (cherenkov(medium)[1] / cherenkov(ICE)[1]) ** 2


def attenuation_length(scattering_m: Floats, absorption_m: Floats) -> Floats:
    """Give the length over which diffuse light fades, (K,) m; no way is shorter than the straight.

    Source: random-walk light propagation as in arXiv:1311.4767; where light hardly scatters, as
    in water, it is the absorption length.
    """
    return np.asarray(np.minimum(np.sqrt(absorption_m * scattering_m / 3.0), absorption_m))


def angular_acceptance(cosine: Floats) -> Floats:
    """Weigh light by where it hits the DOM.

    cosine: (K,) vertical component of the photon's direction; +1 = upward, head-on, because the
    PMT looks down. Returns (K,) acceptance, at most 0.68.
    """
    return np.maximum(np.polynomial.polynomial.polyval(cosine, _ACCEPTANCE), 0.0)


ISOTROPIC_ACCEPTANCE = 0.34
"""Mean of the angular acceptance over the sphere: what thoroughly scattered light meets."""


def arrival_acceptance(cosine: Floats, distance_m: Floats, scattering_m: Floats) -> Floats:
    """Blend the acceptance of direct and of scattered light.

    cosine: direction of unscattered light; distance_m, scattering_m: metres, all (K,).
    Light forgets its direction over one effective scattering length. Returns (K,).
    """
    direct = np.exp(-distance_m / scattering_m)
    return direct * angular_acceptance(cosine) + (1.0 - direct) * ISOTROPIC_ACCEPTANCE


def hadronic_light(energy_gev: Floats, rng: np.random.Generator) -> Floats:
    """Convert hadronic energy to the electromagnetic energy with the same light, (K,) GeV.

    Source: PPC f2k.cxx: mean F = 1 - (E/E0)^-m (1 - f0), relative width 0.959 (ln E)^-1.356.
    """
    energy_gev = np.maximum(energy_gev, 1e-3)
    clipped = np.maximum(energy_gev, 3.0)
    mean = 1.0 - (clipped / _HADRON_E0) ** -_HADRON_M * (1.0 - _HADRON_F0)
    width = np.minimum(0.959 * np.log(clipped) ** -1.356, 0.5)
    factor = mean * (1.0 + width * rng.standard_normal(len(energy_gev)))
    return np.asarray(energy_gev * np.clip(factor, 0.05, 1.0))


def shower_shape(energy_gev: Floats) -> Floats:
    """Shape of the longitudinal gamma profile of a cascade, (K,). Source: PPC f2k.cxx."""
    return np.asarray(2.01849 + 0.63176 * np.log(np.maximum(energy_gev, 1.0)))


def muon_track_light(energy_gev: Floats, continuous_gev_per_m: Floats) -> Floats:
    """Light per metre of muon in units of a bare track, (K,).

    energy_gev: muon energy; continuous_gev_per_m: losses too small to be followed one by one.
    Source: PPC f2k.cxx for the factor of ionisation secondaries.
    """
    secondaries = np.maximum(0.0, 0.1880 + 0.0206 * np.log(np.maximum(energy_gev, 1.0)))
    return np.asarray(1.0 + secondaries * 0.910 / 0.9216 + CASCADE_M_PER_GEV * continuous_gev_per_m)


def point_flux(distance_m: Floats, scattering_m: Floats, absorption_m: Floats) -> Floats:
    """Flux of an isotropic point source of one photon, (K,) per m2.

    Tends to 1/(4 pi r^2) near the source and to diffusion with absorption far away.
    Source: random-walk light propagation as in arXiv:1311.4767.
    """
    attenuation_m = attenuation_length(scattering_m, absorption_m)
    diffusion_m = scattering_m / (3.0 * np.exp(-scattering_m / absorption_m))
    spread = diffusion_m * distance_m * np.tanh(distance_m / diffusion_m)
    return np.asarray(np.exp(-distance_m / attenuation_m) / (4.0 * np.pi * spread))


def track_flux(
    distance_m: Floats, scattering_m: Floats, absorption_m: Floats, medium: Medium = ICE
) -> Floats:
    """Flux of an infinite track of one photon per metre at a perpendicular distance, (K,) per m2.

    Tends to 1/(2 pi d sin(theta_c)) near the track. Source: as `point_flux`.
    """
    sine = cherenkov(medium)[1]
    attenuation_m = attenuation_length(scattering_m, absorption_m)
    diffusion_m = scattering_m / (3.0 * np.exp(-scattering_m / absorption_m))
    scale_m = (diffusion_m / sine) ** 2 * 2.0 / (np.pi * attenuation_m)
    spread = np.sqrt(scale_m * distance_m) * np.tanh(np.sqrt(distance_m / scale_m))
    return np.asarray(np.exp(-distance_m / attenuation_m) / (2.0 * np.pi * sine * spread))


def cascade_emission(cosine: Floats, medium: Medium = ICE) -> Floats:
    """Emission of a cascade relative to an isotropic one, (K,), mean 1 over the sphere.

    cosine: (K,) of the angle between the shower axis and the photon.
    """
    density = _emission_table(medium)
    cell = ((cosine + 1.0) * (0.5 * _N_EMISSION_BINS)).astype(np.int64)
    return density[np.minimum(cell, _N_EMISSION_BINS - 1)]


def smooth_emission(cosine: Floats, width: float, medium: Medium = ICE) -> Floats:
    """Interpolate `cascade_emission`, averaged over a width in the cosine: slopes everywhere."""
    return np.interp(cosine, *_smooth_table(width, medium))


@cache
def _smooth_table(width: float, medium: Medium) -> tuple[Floats, Floats]:
    bin_width = 2.0 / _N_EMISSION_BINS
    reach = int(0.5 * width / bin_width)
    density = np.pad(_emission_table(medium), reach, mode="edge")
    middle = np.asarray((np.arange(_N_EMISSION_BINS) + 0.5) * bin_width - 1.0, np.float64)
    even = np.full(2 * reach + 1, 1.0 / (2 * reach + 1))
    return middle, np.asarray(np.convolve(density, even, mode="valid"), np.float64)


@cache
def _emission_table(medium: Medium) -> Floats:
    """Tabulate the emission: a tilted particle, then the Cherenkov cone about it (PPC pro.cu)."""
    n = 600
    u = (np.arange(n) + 0.5) / n
    norm = 1.0 - np.exp(-_TILT_SLOPE * 2.0**_TILT_EXPONENT)
    tilt = np.minimum((-np.log(1.0 - u * norm) / _TILT_SLOPE) ** (1.0 / _TILT_EXPONENT), 2.0)
    cos_tilt = 1.0 - tilt[:, None]
    sin_tilt = np.sqrt(np.maximum(0.0, 1.0 - cos_tilt**2))
    turn = np.cos(np.pi * u)[None, :]
    cos_cherenkov, sin_cherenkov = cherenkov(medium)
    cosine = cos_tilt * cos_cherenkov + sin_tilt * sin_cherenkov * turn
    counts, _ = np.histogram(cosine, bins=_N_EMISSION_BINS, range=(-1.0, 1.0))
    return np.asarray(counts / counts.mean())


# Muon energy losses: mean loss and range, and single stochastic losses along the way.

_A_GEV_PER_M = 0.259 * ICE.density
_B_PER_M = 0.363e-3 * ICE.density
"""dE/dx = a + b E in ice. Source: Chirkin and Rhode, hep-ph/0407075, Table 3 (per mwe)."""
_PAIR_SHARE = 0.45
"""Share of b from pair production, the rest from bremsstrahlung and photonuclear interactions.
Source: approximate shares at TeV energies, hep-ph/0407075."""
_V_PAIR = (1e-4, 0.1)
"""Pair production: dN/dv ~ v^-2 between these relative losses (soft)."""
V_CUT = 1e-3
"""Smaller relative losses belong to the smooth light of the track."""

_PAIR_PER_M = _PAIR_SHARE * _B_PER_M / np.log(_V_PAIR[1] / _V_PAIR[0])
_HARD_PER_M = (1.0 - _PAIR_SHARE) * _B_PER_M
CONTINUOUS_B_PER_M = float(_PAIR_PER_M * np.log(V_CUT / _V_PAIR[0]) + _HARD_PER_M * V_CUT)
"""The part of b below V_CUT, per metre."""


@dataclass(frozen=True)
class Losses:
    """K stochastic losses: row of the muon, metres along its line, energy in GeV, all (K,)."""

    row: npt.NDArray[np.int64]
    along_m: Floats
    energy_gev: Floats


def muon_range_m(energy_gev: Floats, matter: float = 1.0) -> Floats:
    """Mean range, (K,) m: ln(1 + E b/a)/b. matter: of a metre, relative to ice."""
    return np.asarray(np.log1p(energy_gev * _B_PER_M / _A_GEV_PER_M) / _B_PER_M / matter)


def muon_energy(start_gev: Floats, travelled_m: Floats, matter: float = 1.0) -> Floats:
    """Mean energy after a distance, (K,) GeV; 0 once the muon has stopped."""
    critical = _A_GEV_PER_M / _B_PER_M
    travelled = np.maximum(travelled_m, 0.0) * matter
    left = (start_gev + critical) * np.exp(-_B_PER_M * travelled) - critical
    return np.maximum(left, 0.0)


def draw_losses(
    start_gev: Floats,
    start_m: Floats,
    first_m: Floats,
    last_m: Floats,
    rng: np.random.Generator,
    matter: float = 1.0,
) -> Losses:
    """Draw the losses above V_CUT between first_m and last_m on the muon's line.

    start_gev at start_m; all (M,), metres along the line. Pair production falls as v^-2,
    bremsstrahlung and photonuclear losses as 1/v; both carry their share of b on average.
    """
    length = np.maximum(last_m - first_m, 0.0)
    passed = length * matter
    n_pair = rng.poisson(passed * _PAIR_PER_M * (1.0 / V_CUT - 1.0 / _V_PAIR[1]))
    n_hard = rng.poisson(passed * _HARD_PER_M * np.log(1.0 / V_CUT))
    rows = np.arange(len(length))
    row = np.concatenate([np.repeat(rows, n_pair), np.repeat(rows, n_hard)])
    u = rng.random(len(row))
    pair = np.arange(len(row)) < n_pair.sum()
    v = np.where(
        pair,
        1.0 / (1.0 / V_CUT - u * (1.0 / V_CUT - 1.0 / _V_PAIR[1])),
        V_CUT ** (1.0 - u),
    )
    along = first_m[row] + rng.random(len(row)) * length[row]
    energy = v * muon_energy(start_gev[row], along - start_m[row], matter)
    return Losses(row, along, energy)
