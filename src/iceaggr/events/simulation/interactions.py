"""Neutrino interactions: energy, direction, kinematics and vertex, many at once."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Self

import numpy as np
import numpy.typing as npt

from iceaggr.events.simulation.config import SimulationConfig
from iceaggr.events.simulation.ice import Floats, Site
from iceaggr.events.simulation.light import hadronic_light, muon_range_m

NU_MU_CC, NU_E_CC, NU_NC = 0, 1, 2
"""Codes of interactions; the first makes tracks, the others cascades."""
_NUCLEON_GEV = 0.938
_OVERBURDEN_M = 1948.0
"""From the centre of the array to the surface, as at the South Pole; no muon starts above it."""


@dataclass
class Interactions:
    """P interactions. Vectors are unit vectors; `origin` points to where the neutrino came from.

    energy_gev, inelasticity, cascade_gev, muon_gev: (P,) float64 (cascade_gev: electromagnetic
    energy with the same light; muon_gev: at the vertex, 0 for cascades)
    hadronic_gev: (P,) the part of cascade_gev that hadrons make.  bjorken_x: (P,)
    code: (P,) int64, NU_MU_CC and so on.  flavour: (P,) int64, PDG id of the neutrino
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
    origin: Floats
    travel: Floats
    vertex_m: Floats
    vertex_along_m: Floats

    @property
    def is_track(self) -> npt.NDArray[np.bool_]:
        """Mark muon-neutrino charged currents, (P,)."""
        return np.asarray(self.code == NU_MU_CC)

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
    return Interactions(
        energy_gev=energy,
        inelasticity=y,
        cascade_gev=cascade_gev,
        muon_gev=muon_gev,
        hadronic_gev=hadronic,
        bjorken_x=x,
        code=code,
        flavour=np.where(of_muon, 14, 12) * np.where(antineutrino, -1, 1),
        origin=origin,
        travel=travel,
        vertex_m=vertex,
        vertex_along_m=along,
    )


def _energies(n: int, config: SimulationConfig, rng: np.random.Generator) -> Floats:
    low, high = config.min_energy_gev, config.max_energy_gev
    power = 1.0 - config.spectral_index
    u = rng.random(n)
    soft = (low**power + u * (high**power - low**power)) ** (1.0 / power)
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
    to_surface = np.where(up > 1e-6, (_OVERBURDEN_M - side[:, 2]) / np.maximum(up, 1e-6), np.inf)
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
