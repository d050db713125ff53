"""The site: sensors, the medium around them with its lengths of light, and what reads them out."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from functools import cache, cached_property
from importlib import resources
from typing import Protocol

import numpy as np
import numpy.typing as npt
from scipy.spatial import ConvexHull, QhullError, cKDTree

from iceaggr.detector import C_M_PER_NS, ICE, SAME_PLACE_M, Detector, Medium, icecube86

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_AMANDA_Z_M = (-50.0, 450.0)
"""Depths 1500-2000 m, where the Pandel constants were fitted to AMANDA data."""

_GRID_STEP_M, _GRID_HALF_M = 2.0, 1_200.0
_ICECUBE_WINDOW_NS = 5_000.0
_ICECUBE_DEPTH_M = 1_948.0


class Lengths(Protocol):
    """Says how far light gets between two depths."""

    def mean_lengths(self, z_from_m: Floats, z_to_m: Floats) -> tuple[Floats, Floats]:
        """Average effective scattering and absorption length over a path, (K,) metres each."""


@dataclass(frozen=True)
class Uniform:
    """A medium that is the same at every depth: water, or ice whose layers nobody knows."""

    scattering_m: float
    absorption_m: float

    def mean_lengths(self, z_from_m: Floats, z_to_m: Floats) -> tuple[Floats, Floats]:
        """Give the same lengths for every path."""
        return np.full(len(z_from_m), self.scattering_m), np.full(len(z_to_m), self.absorption_m)


@dataclass(frozen=True)
class Ice:
    """Layered ice as running integrals of the inverse lengths, for averages over any path.

    scattering, absorption: (G,) integral of 1/length from the bottom of an even grid in z
    (every 2 m, +-1200 m) to each of its points, dimensionless.  origin_z_m: the z of its origin
    """

    scattering: Floats
    absorption: Floats
    origin_z_m: float = 0.0

    def mean_lengths(self, z_from_m: Floats, z_to_m: Floats) -> tuple[Floats, Floats]:
        """Average the ice between two depths (harmonic mean over the path).

        z_from_m, z_to_m: (K,) metres. Returns effective scattering and absorption length, (K,) m.
        """
        # a level path would divide 0 by 0: give every path at least one metre of height
        low = np.minimum(z_from_m, z_to_m) - 0.5
        high = np.maximum(z_from_m, z_to_m) + 0.5
        height = high - low
        low_at, high_at = self._place(low), self._place(high)
        scattering = _read(self.scattering, high_at) - _read(self.scattering, low_at)
        absorption = _read(self.absorption, high_at) - _read(self.absorption, low_at)
        return height / scattering, height / absorption

    def _place(self, z_m: Floats) -> tuple[npt.NDArray[np.int64], Floats]:
        """Find the grid cell and the place in it; beyond the grid the last cell goes on."""
        position = (z_m - self.origin_z_m + _GRID_HALF_M) / _GRID_STEP_M
        cell = np.clip(position.astype(np.int64), 0, len(self.scattering) - 2)
        return cell, position - cell


def _read(integral: Floats, place: tuple[npt.NDArray[np.int64], Floats]) -> Floats:
    cell, part = place
    below = integral[cell]
    return np.asarray(below + part * (integral[cell + 1] - below))


@cache
def south_pole_ice() -> Ice:
    """Load the built-in table: effective scattering and absorption lengths at 400 nm, 10 m steps.

    The first and last layer go on outside the table.
    Source: SPICE Mie, arXiv:1301.5361; depths converted with the origin at 1948.07 m.
    """
    text = (
        resources.files("iceaggr.resources").joinpath("ice_layers.csv").read_text(encoding="utf-8")
    )
    table = np.loadtxt(io.StringIO(text), delimiter=",", skiprows=1)
    table = table[np.argsort(table[:, 0])]
    middle = np.arange(-_GRID_HALF_M, _GRID_HALF_M, _GRID_STEP_M) + 0.5 * _GRID_STEP_M
    scattering, absorption = (
        np.concatenate([[0.0], np.cumsum(_GRID_STEP_M * np.interp(middle, table[:, 0], per_m))])
        for per_m in (1.0 / table[:, 1:]).T
    )
    return Ice(scattering, absorption)


@cache
def reference_lengths() -> tuple[float, float]:
    """Average the ice over the depths to which the Pandel constants belong.

    Returns effective scattering and absorption length in metres.
    """
    bottom, top = (np.array([z]) for z in _AMANDA_Z_M)
    scattering_m, absorption_m = south_pole_ice().mean_lengths(bottom, top)
    return float(scattering_m[0]), float(absorption_m[0])


# The live sensors of the built-in detector, in the form that the simulation searches.


@dataclass(frozen=True)
class Sensors:
    """S live sensors in the order of their ids.

    sensor_id: (S,) int64.  xyz_m: (S, 3) metres.  efficiency: (S,) relative to a standard DOM
    string, place: (S,) int64, strings counted from 0, and on each the sensors from 0 at the top
    neighbour: (4, S) int64 row of the sensor 2 and 1 above and 1 and 2 below on the same string,
    or -1.  tree: for finding the sensors near a light source.
    """

    sensor_id: Ints
    xyz_m: Floats
    efficiency: Floats
    string: Ints
    place: Ints
    neighbour: Ints
    tree: cKDTree

    @property
    def n_sensors(self) -> int:
        """Count the live sensors."""
        return len(self.sensor_id)


def _live_sensors(detector: Detector) -> Sensors:
    """Select the sensors that take data."""
    live = np.flatnonzero(detector.in_use)
    return Sensors(
        sensor_id=detector.sensor_id[live],
        xyz_m=detector.xyz_m[live],
        efficiency=detector.efficiency[live],
        string=detector.string_keys()[live],
        place=detector.places_on_strings()[live],
        neighbour=_neighbours(detector)[:, live],
        tree=cKDTree(detector.xyz_m[live]),
    )


def _neighbours(detector: Detector) -> Ints:
    """Find the neighbours of all S sensors along their strings, as rows of live ones: (4, S).

    A dead sensor leaves a gap, it closes no distance.
    """
    n_sensors = detector.n_sensors
    # from top to bottom on each string; one row of padding at both ends
    order = np.lexsort((-detector.xyz_m[:, 2], detector.string_keys()))
    string = detector.string_keys()[order]
    row_of_live = np.where(detector.in_use, np.cumsum(detector.in_use) - 1, -1)
    table = np.full((4, n_sensors), -1, dtype=np.int64)
    for k, step in enumerate((-2, -1, 1, 2)):
        place = np.arange(n_sensors) + step
        inside = (place >= 0) & (place < n_sensors)
        place = place.clip(0, n_sensors - 1)
        same = inside & (string[place] == string)
        table[k, order] = np.where(same, row_of_live[order[place]], -1)
    return table


@dataclass(frozen=True)
class Extent:
    """Where interactions are placed and followed, in metres from the centre of the array.

    centre_m: (3,).  reach_m: light of a muon farther along its way is not followed
    radius_m, half_height_m: of the cylinder that cascades start in, before the margin for bright
    ones, and that muons pass.  disk_radius_m: IceCube's muons pass the centre within it instead
    """

    centre_m: Floats
    reach_m: float
    radius_m: float
    half_height_m: float
    disk_radius_m: float = 0.0

    @property
    def crossing_ns(self) -> float:
        """Give the time that a muon needs to pass the array, to 100 ns."""
        return round(2.0 * self.reach_m / C_M_PER_NS, -2)


@dataclass(frozen=True, eq=False)
class Site:
    """A detector in its medium, as the simulation needs it; IceCube's is `icecube_site`.

    lengths: of light, by depth.  pandel_lengths: scattering and absorption length, metres, to
    which the Pandel constants belong.  looks_down: the modules are like IceCube's, with one
    photomultiplier that looks down; others see light from everywhere alike
    is_icecube: the event's clock and merged readouts are those of the competition's files
    """

    detector: Detector
    sensors: Sensors
    lengths: Lengths
    pandel_lengths: tuple[float, float]
    extent: Extent
    looks_down: bool
    is_icecube: bool

    @property
    def medium(self) -> Medium:
        """Give the medium of the detector."""
        return self.detector.medium

    @property
    def matter(self) -> float:
        """Give the matter of a metre, relative to a metre of ice."""
        return self.medium.density / ICE.density

    @property
    def n_trigger_hits(self) -> int:
        """Give the coincident hits of the multiplicity trigger: eight, fewer in small arrays.

        Source: SMT-8 of IceCube (arXiv:1612.05093); one hit to 15 sensors below it is a choice.
        """
        return int(np.clip(self.sensors.n_sensors // 15, 3, 8))

    @property
    def trigger_window_ns(self) -> float:
        """Give the time in which the hits of a trigger come: that of a muon through the array.

        5,000 ns for IceCube, as its SMT-8 has. Source: arXiv:1612.05093, trigger table.
        """
        return self.extent.crossing_ns

    @property
    def readout_before_ns(self) -> float:
        """Give the time that is read out before the trigger, in small arrays in proportion.

        4,000 ns for IceCube. Source: IC86 trigger settings at icecube.umd.edu. Larger arrays need
        no more, because the readout goes on while hits do.
        """
        return 0.8 * min(self.trigger_window_ns, _ICECUBE_WINDOW_NS)

    @property
    def readout_after_ns(self) -> float:
        """Give the time that is read out after the last trigger; as before, 6,000 ns."""
        return 1.2 * min(self.trigger_window_ns, _ICECUBE_WINDOW_NS)

    @property
    def overburden_m(self) -> float:
        """Give what is above the centre of the array, above which no muon starts.

        An array that lies below z = 0 as a whole counts z from the surface, as NuBench's do; of
        others nobody says it, and they are taken to be as deep as IceCube.
        """
        below_surface = float(self.detector.xyz_m[:, 2].max()) < 0.0
        return -float(self.extent.centre_m[2]) if below_surface else _ICECUBE_DEPTH_M

    @cached_property
    def hull(self) -> tuple[Floats, float, float]:
        """Give the planes (P, 3) around the strings from above, and bottom and top in metres.

        Strings in one line enclose nothing: no plane is then satisfied.
        """
        xyz = self.detector.xyz_m
        try:
            planes = np.asarray(ConvexHull(xyz[:, :2]).equations)
        except QhullError:
            planes = np.array([[0.0, 0.0, 1.0]])
        return planes, float(xyz[:, 2].min()), float(xyz[:, 2].max())


_SITES: dict[str, Site] = {}


def site_of(detector: Detector) -> Site:
    """Find the site of a detector; the last one is kept for the next block of events."""
    digest = detector.digest()
    if digest not in _SITES:
        _SITES.clear()
        known = icecube_site()
        is_icecube = digest == known.detector.digest()
        _SITES[digest] = known if is_icecube else _other_site(detector)
    return _SITES[digest]


@cache
def icecube_site() -> Site:
    """Build the site of IceCube-86; its sizes are chosen, and kept so that its events stay."""
    detector = icecube86()
    return Site(
        detector=detector,
        sensors=_live_sensors(detector),
        lengths=south_pole_ice(),
        pandel_lengths=reference_lengths(),
        extent=Extent(np.zeros(3), 750.0, 520.0, 520.0, disk_radius_m=780.0),
        looks_down=True,
        is_icecube=True,
    )


def _other_site(detector: Detector) -> Site:
    """Build the site of any detector: in ice with IceCube's modules, in water with open ones."""
    in_ice = detector.medium == ICE
    water = Uniform(detector.medium.scattering_m, detector.medium.absorption_m)
    return Site(
        detector=detector,
        sensors=_live_sensors(detector),
        lengths=_ice_around(detector) if in_ice else water,
        pandel_lengths=reference_lengths() if in_ice else (ICE.scattering_m, ICE.absorption_m),
        extent=_extent_of(detector, detector.medium),
        looks_down=in_ice,
        is_icecube=False,
    )


def _ice_around(detector: Detector) -> Lengths:
    """Take the layers of the South Pole where IceCube's strings are, at any origin of z.

    Elsewhere nobody says how deep the sensors are: the ice is that of 1500 to 2000 m.
    """
    known = icecube86()
    if np.array_equal(detector.sensor_id, known.sensor_id):
        shift = detector.xyz_m - known.xyz_m
        if np.abs(shift - [0.0, 0.0, shift[0, 2]]).max() < SAME_PLACE_M:
            return replace(south_pole_ice(), origin_z_m=float(shift[0, 2]))
    return Uniform(*reference_lengths())


def _extent_of(detector: Detector, medium: Medium) -> Extent:
    """Measure the array; muons pass it as far outside as their light is absorbed."""
    low, high = detector.bounds_m
    centre = (low + high) / 2.0
    from_centre = detector.xyz_m - centre
    radius = float(np.hypot(from_centre[:, 0], from_centre[:, 1]).max())
    farthest = float(np.linalg.norm(from_centre, axis=1).max())
    outside = farthest + medium.absorption_m
    return Extent(centre, outside, radius, float(from_centre[:, 2].max()))
