"""Neutrino interactions: energy, direction, kinematics and vertex, many at once."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cache
from typing import Self

import numpy as np
import numpy.typing as npt
from scipy.spatial import ConvexHull

from iceaggr.detector import icecube86
from iceaggr.events.simulation.config import SimulationConfig
from iceaggr.events.simulation.ice import Floats
from iceaggr.events.simulation.light import hadronic_light, muon_range_m

INTERACTIONS = ("nu_mu_cc", "nu_e_cc", "nu_nc")
"""Names of the interaction codes; the first makes tracks, the others cascades."""
REACH_M = 750.0
"""Light of a muon farther than this along its way from the centre is not followed."""
_NUCLEON_GEV = 0.938
_SURFACE_Z_M = 1948.0
_DISK_RADIUS_M = 780.0


@dataclass
class Interactions:
    """P interactions. Vectors are unit vectors; `origin` points to where the neutrino came from.

    energy_gev, inelasticity, cascade_gev, muon_gev: (P,) float64 (cascade_gev: electromagnetic
    energy with the same light; muon_gev: at the vertex, 0 for cascades)
    code: (P,) int64 into INTERACTIONS.  origin, travel: (P, 3), travel of the muon or cascade
    vertex_m: (P, 3) metres.  vertex_along_m: (P,) vertex on the line through its nearest point
    to the detector's centre, metres along `travel`.
    """

    energy_gev: Floats
    inelasticity: Floats
    cascade_gev: Floats
    muon_gev: Floats
    code: npt.NDArray[np.int64]
    origin: Floats
    travel: Floats
    vertex_m: Floats
    vertex_along_m: Floats

    @property
    def is_track(self) -> npt.NDArray[np.bool_]:
        """Mark muon-neutrino charged currents, (P,)."""
        return np.asarray(self.code == 0)

    def take(self, rows: npt.NDArray[np.int64]) -> Self:
        """Select interactions by row."""
        return type(self)(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})


def draw_interactions(n: int, config: SimulationConfig, rng: np.random.Generator) -> Interactions:
    """Draw n interactions, isotropic, with energies from the configured spectrum."""
    energy = _energies(n, config, rng)
    cascade = rng.random(n) < config.cascade_share
    # about one neutral-current interaction to three charged-current ones at these energies
    code = np.where(cascade, np.where(rng.random(n) < 0.25, 2, 1), 0)
    y = _inelasticity(n, rng)
    origin = _isotropic(n, rng)
    angle = np.where(code == 0, _kinematic_angle(energy, y, rng), 0.0)
    travel = _deflect(-origin, angle, rng)
    hadronic = hadronic_light(y * energy, rng)
    cascade_gev = hadronic + np.where(code == 1, (1.0 - y) * energy, 0.0)
    muon_gev = np.where(code == 0, (1.0 - y) * energy, 0.0)
    vertex, along = _vertices(code == 0, energy, muon_gev, travel, rng)
    return Interactions(energy, y, cascade_gev, muon_gev, code, origin, travel, vertex, along)


def _energies(n: int, config: SimulationConfig, rng: np.random.Generator) -> Floats:
    low, high = config.min_energy_gev, config.max_energy_gev
    power = 1.0 - config.spectral_index
    u = rng.random(n)
    soft = (low**power + u * (high**power - low**power)) ** (1.0 / power)
    return np.where(rng.random(n) < config.hard_share, low * (high / low) ** u, soft)


def inside_array(vertex_m: Floats) -> npt.NDArray[np.bool_]:
    """Mark vertices inside the instrumented volume, (P, 3) metres -> (P,) bool."""
    planes, bottom, top = _array_hull()
    within = (vertex_m[:, :2] @ planes[:, :2].T + planes[:, 2] <= 0).all(axis=1)
    return np.asarray(within & (vertex_m[:, 2] > bottom) & (vertex_m[:, 2] < top))


@cache
def _array_hull() -> tuple[Floats, float, float]:
    xyz = icecube86().xyz_m
    return ConvexHull(xyz[:, :2]).equations, float(xyz[:, 2].min()), float(xyz[:, 2].max())


def _isotropic(n: int, rng: np.random.Generator) -> Floats:
    vectors = rng.standard_normal((n, 3))
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def _inelasticity(n: int, rng: np.random.Generator) -> Floats:
    """Draw y: flat for neutrinos, (1-y)^2 for antineutrinos (quark-parton model), equal parts."""
    u = rng.random(n)
    antineutrino = rng.random(n) < 0.5
    return np.clip(np.where(antineutrino, 1.0 - np.cbrt(u), u), 1e-3, 0.999)


def _kinematic_angle(energy: Floats, y: Floats, rng: np.random.Generator) -> Floats:
    """Angle between neutrino and muon: sin^2(angle/2) = M x y / (2 E (1-y)), radians (P,).

    Source: deep inelastic kinematics, Q^2 = 2 M E x y = 4 E E' sin^2(angle/2); x from a Beta
    distribution of mean 0.19, close to the valence and sea quarks together.
    """
    x = rng.beta(0.8, 3.5, len(energy))
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
    rng: np.random.Generator,
) -> tuple[Floats, Floats]:
    """Place vertices: cascades in and around the array, muons upstream as far as they range."""
    n = len(energy)
    # brighter cascades are seen from farther outside
    margin = 25.0 * np.log10(energy / 30.0)
    radius = np.where(track, _DISK_RADIUS_M, 520.0 + margin) * np.sqrt(rng.random(n))
    side = radius[:, None] * _perpendicular(travel, rng)
    reach = muon_range_m(muon_gev)
    # above the surface there is no ice to interact in
    up = -travel[:, 2]
    to_surface = np.where(up > 1e-6, (_SURFACE_Z_M - side[:, 2]) / np.maximum(up, 1e-6), np.inf)
    first = -np.minimum(reach + REACH_M, np.maximum(to_surface, REACH_M))
    along = np.where(track, first + rng.random(n) * (600.0 - first), 0.0)
    vertex = side + along[:, None] * travel
    turn = rng.standard_normal((n, 2))
    turn /= np.linalg.norm(turn, axis=1, keepdims=True)
    height = (2.0 * rng.random(n) - 1.0) * (520.0 + margin)
    around = np.column_stack([radius[:, None] * turn, height])
    vertex = np.where(track[:, None], vertex, around)
    return vertex, np.where(track, along, (vertex * travel).sum(axis=1))
