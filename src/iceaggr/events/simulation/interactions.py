"""Neutrino interactions: energy, direction, kinematics and vertex, many at once."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Self

import numpy as np
import numpy.typing as npt

from iceaggr.events.simulation.config import SimulationConfig
from iceaggr.events.simulation.ice import Floats, Site
from iceaggr.events.simulation.light import hadronic_light, muon_range_m

NU_MU_CC, NU_E_CC, NU_NC, NU_TAU_CC = range(4)
"""Codes of interactions; the first makes tracks, the others cascades, but for some taus."""
_NUCLEON_GEV = 0.938


@dataclass
class Interactions:
    """P interactions. Vectors are unit vectors; `origin` points to where the neutrino came from.

    energy_gev, inelasticity, cascade_gev, muon_gev: (P,) float64 (cascade_gev: electromagnetic
    energy with the same light; muon_gev: at the vertex, 0 for cascades)
    hadronic_gev: (P,) the part of cascade_gev that hadrons make.  bjorken_x: (P,)
    code: (P,) int64, NU_MU_CC and so on.  flavour: (P,) int64, PDG id of the neutrino
    in_sight: (P,) bool, near enough to be seen
    origin, travel: (P, 3), travel of the muon or cascade
    vertex_m: (P, 3) metres.  vertex_along_m: (P,) vertex on the line through its nearest point
    to the detector's centre, metres along `travel`.
    """

    energy_gev: Floats
    inelasticity: Floats
    cascade_gev: Floats
    muon_gev: Floats
    hadronic_gev: Floats
    bjorken_x: Floats
    code: npt.NDArray[np.int64]
    flavour: npt.NDArray[np.int64]
    in_sight: npt.NDArray[np.bool_]
    origin: Floats
    travel: Floats
    vertex_m: Floats
    vertex_along_m: Floats

    @property
    def is_track(self) -> npt.NDArray[np.bool_]:
        """Mark interactions that make a muon, (P,)."""
        return np.asarray(self.muon_gev > 0)

    def take(self, rows: npt.NDArray[np.int64]) -> Self:
        """Select interactions by row."""
        return type(self)(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})


def draw_interactions(
    n: int, config: SimulationConfig, site: Site, rng: np.random.Generator
) -> Interactions:
    """Draw n interactions, isotropic, with energies from the configured spectrum."""
    energy = _energies(n, config, rng)
    cascade = rng.random(n) < config.cascade_share
    # about one neutral-current interaction to three charged-current ones at these energies
    neutral = (rng.random(n) < 0.25) | (config.flavour == "numu")
    code = np.where(cascade, np.where(neutral, NU_NC, NU_E_CC), NU_MU_CC)
    y, antineutrino = _inelasticity(n, rng)
    origin = _isotropic(n, rng)
    x = _bjorken_x(n, rng)
    angle = np.where(code == NU_MU_CC, _kinematic_angle(energy, x, y), 0.0)
    travel = _deflect(-origin, angle, rng)
    hadronic = hadronic_light(y * energy, rng)
    cascade_gev = hadronic + np.where(code == NU_E_CC, (1.0 - y) * energy, 0.0)
    muon_gev = np.where(code == NU_MU_CC, (1.0 - y) * energy, 0.0)
    vertex, along = _vertices(code == NU_MU_CC, energy, muon_gev, travel, site, rng)
    # a neutral current does not tell the flavour: half and half where both are simulated
    of_muon = (code == NU_MU_CC) | (config.flavour == "numu") | ((code == NU_NC) & (x > 0.15))
    drawn = Interactions(
        energy_gev=energy,
        inelasticity=y,
        cascade_gev=cascade_gev,
        muon_gev=muon_gev,
        hadronic_gev=hadronic,
        bjorken_x=x,
        code=code,
        flavour=np.where(of_muon, 14, 12) * np.where(antineutrino, -1, 1),
        in_sight=np.ones(n, bool),
        origin=origin,
        travel=travel,
        vertex_m=vertex,
        vertex_along_m=along,
    )
    if config.tau_share > 0:
        _decay_taus(drawn, config.tau_share, rng)
    if config.out_of_sight_share > 0:
        _move_out_of_sight(drawn, config.out_of_sight_share, rng)
    if config.earth:
        arrives = rng.random(n) < earth_transmission(energy, origin[:, 2])
        drawn = drawn.take(np.flatnonzero(arrives))
    return drawn


# Tau neutrinos: the tau decays where it was made, as its way is short below a PeV (50 m per PeV).
# Source: Particle Data Group, branching ratios; mean shares of energy without polarisation, which
# would make them 0.40 and 0.59.
_TAU_TO_MUON, _TAU_TO_ELECTRON = 0.174, 0.178
_VISIBLE_OF_LEPTONIC, _VISIBLE_OF_HADRONIC = 0.35, 0.65


def _decay_taus(drawn: Interactions, share: float, rng: np.random.Generator) -> None:
    """Turn a share of the electron neutrinos into tau neutrinos, in place."""
    tau = np.flatnonzero((drawn.code == NU_E_CC) & (rng.random(len(drawn.code)) < share))
    drawn.code[tau] = NU_TAU_CC
    drawn.flavour[tau] = 16 * np.sign(drawn.flavour[tau])
    u = rng.random(len(tau))
    tau_gev = (1.0 - drawn.inelasticity[tau]) * drawn.energy_gev[tau]
    to_muon, to_electron = u < _TAU_TO_MUON, u >= 1.0 - _TAU_TO_ELECTRON
    hadrons = hadronic_light(_VISIBLE_OF_HADRONIC * tau_gev, rng)
    light = np.where(to_electron, _VISIBLE_OF_LEPTONIC * tau_gev, hadrons)
    drawn.cascade_gev[tau] = drawn.hadronic_gev[tau] + np.where(to_muon, 0.0, light)
    drawn.muon_gev[tau] = np.where(to_muon, _VISIBLE_OF_LEPTONIC * tau_gev, 0.0)


_OUT_OF_SIGHT_M = (900.0, 1_600.0)


def _move_out_of_sight(drawn: Interactions, share: float, rng: np.random.Generator) -> None:
    """Move a share of the vertices, or of the ways of muons, too far out to be seen, in place."""
    far = np.flatnonzero(rng.random(len(drawn.code)) < share)
    drawn.in_sight[far] = False
    nearest, farthest = _OUT_OF_SIGHT_M
    distance = np.sqrt(rng.uniform(nearest**2, farthest**2, len(far)))
    travel = drawn.travel[far]
    along = np.where(drawn.is_track[far], drawn.vertex_along_m[far], 0.0)
    side = drawn.vertex_m[far] - along[:, None] * travel
    drawn.vertex_m[far] += (distance / np.linalg.norm(side, axis=1) - 1.0)[:, None] * side
    drawn.vertex_along_m[far] = (drawn.vertex_m[far] * travel).sum(axis=1)


# The Earth: two shells of even density, and cross sections on a nucleon at powers of ten in GeV.
# Source: Gandhi et al. 1998, hep-ph/9807264, charged currents, CTEQ4-DIS, quoted from general
# knowledge; neutral currents add 0.4.
_EARTH_KM, _CORE_KM = 6_371.0, 3_480.0
_MANTLE_G_CM3, _CORE_G_CM3 = 4.5, 11.0
_LOG10_GEV = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0])
_LOG10_CM2 = np.log10(
    [7.77e-38, 6.97e-37, 6.25e-36, 4.54e-35, 1.96e-34, 6.11e-34, 1.76e-33, 4.78e-33]
)
_NEUTRAL_TOO = 1.4
_NUCLEONS_PER_G = 6.022e23


def earth_transmission(energy_gev: Floats, cos_zenith: Floats) -> Floats:
    """Share of the neutrinos that reach the detector, (P,); 1 from above the horizon."""
    cosine = np.minimum(cos_zenith, 0.0)
    chord_km = -2.0 * _EARTH_KM * cosine
    nearest_km = _EARTH_KM * np.sqrt(1.0 - cosine**2)
    core_km = 2.0 * np.sqrt(np.maximum(_CORE_KM**2 - nearest_km**2, 0.0))
    g_cm2 = 1e5 * (_MANTLE_G_CM3 * (chord_km - core_km) + _CORE_G_CM3 * core_km)
    log_cm2 = np.interp(np.log10(energy_gev), _LOG10_GEV, _LOG10_CM2)
    return np.asarray(np.exp(-_NUCLEONS_PER_G * g_cm2 * _NEUTRAL_TOO * 10.0**log_cm2))


def _energies(n: int, config: SimulationConfig, rng: np.random.Generator) -> Floats:
    low, high = config.min_energy_gev, config.max_energy_gev
    power = 1.0 - config.spectral_index
    u = rng.random(n)
    if power:
        soft = (low**power + u * (high**power - low**power)) ** (1.0 / power)
    else:
        soft = low * (high / low) ** u
    return np.where(rng.random(n) < config.hard_share, low * (high / low) ** u, soft)


def inside_array(vertex_m: Floats, site: Site) -> npt.NDArray[np.bool_]:
    """Mark vertices inside the instrumented volume, (P, 3) metres -> (P,) bool."""
    planes, bottom, top = site.hull
    within = (vertex_m[:, :2] @ planes[:, :2].T + planes[:, 2] <= 0).all(axis=1)
    return np.asarray(within & (vertex_m[:, 2] > bottom) & (vertex_m[:, 2] < top))


def _isotropic(n: int, rng: np.random.Generator) -> Floats:
    vectors = rng.standard_normal((n, 3))
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def _inelasticity(n: int, rng: np.random.Generator) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Draw y: flat for neutrinos, (1-y)^2 for antineutrinos (quark-parton model), equal parts.

    Returns y and which are antineutrinos, (n,) each.
    """
    u = rng.random(n)
    antineutrino = rng.random(n) < 0.5
    return np.clip(np.where(antineutrino, 1.0 - np.cbrt(u), u), 1e-3, 0.999), antineutrino


def _bjorken_x(n: int, rng: np.random.Generator) -> Floats:
    """Draw x of a Beta distribution of mean 0.19, close to the valence and sea quarks together."""
    return rng.beta(0.8, 3.5, n)


def _kinematic_angle(energy: Floats, x: Floats, y: Floats) -> Floats:
    """Angle between neutrino and muon: sin^2(angle/2) = M x y / (2 E (1-y)), radians (P,).

    Source: deep inelastic kinematics, Q^2 = 2 M E x y = 4 E E' sin^2(angle/2).
    """
    return np.asarray(
        2.0 * np.arcsin(np.sqrt(np.minimum(_NUCLEON_GEV * x * y / (2 * energy * (1 - y)), 1.0)))
    )


def _perpendicular(axis: Floats, rng: np.random.Generator) -> Floats:
    """Draw a random unit vector perpendicular to each axis, (P, 3)."""
    free = rng.standard_normal(axis.shape)
    free -= (free * axis).sum(axis=1, keepdims=True) * axis
    return np.asarray(free / np.linalg.norm(free, axis=1, keepdims=True))


def _deflect(axis: Floats, angle: Floats, rng: np.random.Generator) -> Floats:
    side = _perpendicular(axis, rng)
    return np.asarray(np.cos(angle)[:, None] * axis + np.sin(angle)[:, None] * side)


def _vertices(
    track: npt.NDArray[np.bool_],
    energy: Floats,
    muon_gev: Floats,
    travel: Floats,
    site: Site,
    rng: np.random.Generator,
) -> tuple[Floats, Floats]:
    """Place vertices: cascades in and around the array, muons upstream as far as they range."""
    n, extent = len(energy), site.extent
    # brighter cascades are seen from farther outside
    margin = 25.0 * np.log10(energy / 30.0)
    widest = np.where(track, extent.disk_radius_m, extent.radius_m + margin)
    radius = widest * np.sqrt(rng.random(n))
    side = radius[:, None] * _perpendicular(travel, rng)
    if not site.is_icecube:
        side = _through_cylinder(travel, site, rng)
    reach = muon_range_m(muon_gev, site.matter)
    # above the surface there is nothing to interact in
    up = -travel[:, 2]
    above = site.overburden_m - side[:, 2]
    to_surface = np.where(up > 1e-6, above / np.maximum(up, 1e-6), np.inf)
    first = -np.minimum(reach + extent.reach_m, np.maximum(to_surface, extent.reach_m))
    last = 0.8 * extent.reach_m
    along = np.where(track, first + rng.random(n) * (last - first), 0.0)
    vertex = side + along[:, None] * travel
    around = _in_cylinder(radius, extent.half_height_m + margin, rng)
    vertex = np.where(track[:, None], vertex, around)
    along = np.where(track, along, (vertex * travel).sum(axis=1))
    return vertex + extent.centre_m, along


def _in_cylinder(radius: Floats, half_height: Floats, rng: np.random.Generator) -> Floats:
    """Turn points at a radius, (P,) m, about the vertical and spread them in height: (P, 3)."""
    turn = rng.standard_normal((len(radius), 2))
    turn /= np.linalg.norm(turn, axis=1, keepdims=True)
    height = (2.0 * rng.random(len(radius)) - 1.0) * half_height
    return np.column_stack([radius[:, None] * turn, height])


def _through_cylinder(travel: Floats, site: Site, rng: np.random.Generator) -> Floats:
    """Draw where muons pass the centre, (P, 3) m across `travel`: through any point of the array.

    So that a muon along a slender array is as likely as one across it sees sensors.
    """
    extent, n = site.extent, len(travel)
    outside = site.medium.absorption_m
    radius = (extent.radius_m + outside) * np.sqrt(rng.random(n))
    point = _in_cylinder(radius, np.full(n, extent.half_height_m + outside), rng)
    return np.asarray(point - (point * travel).sum(axis=1, keepdims=True) * travel)
