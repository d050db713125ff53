"""The ice: scattering and absorption by depth, averaged along the way of the light."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from iceaggr.detector import N_PHASE, icecube86

Floats = npt.NDArray[np.float64]

COS_CHERENKOV = 1.0 / N_PHASE
SIN_CHERENKOV = float(np.sqrt(1.0 - COS_CHERENKOV**2))
TAN_CHERENKOV = SIN_CHERENKOV / COS_CHERENKOV
ICE_DENSITY = 0.917
"""Density relative to water: metres water equivalent per metre of ice."""

_AMANDA_Z_M = (-50.0, 450.0)
"""Depths 1500-2000 m, where the Pandel constants were fitted to AMANDA data."""

_GRID_STEP_M, _GRID_HALF_M = 2.0, 1_200.0


@dataclass(frozen=True)
class Ice:
    """Layered ice as running integrals of the inverse lengths, for averages over any path.

    scattering, absorption: (G,) integral of 1/length from the bottom of an even grid in z
    (every 2 m, +-1200 m) to each of its points, dimensionless.
    """

    scattering: Floats
    absorption: Floats

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
        position = (z_m + _GRID_HALF_M) / _GRID_STEP_M
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

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Sensors:
    """S live sensors, ordered by string and then from top to bottom.

    sensor_id: (S,) int64.  xyz_m: (S, 3) metres.  efficiency: (S,) relative to a standard DOM
    neighbour: (4, S) int64 row of the sensor 2 and 1 above and 1 and 2 below on the same string,
    or -1.  tree: for finding the sensors near a light source.
    """

    sensor_id: Ints
    xyz_m: Floats
    efficiency: Floats
    neighbour: Ints
    tree: cKDTree

    @property
    def n_sensors(self) -> int:
        """Count the live sensors."""
        return len(self.sensor_id)


@cache
def live_sensors() -> Sensors:
    """Select the sensors of IceCube-86 that take data."""
    detector = icecube86()
    live = np.flatnonzero(detector.in_use)
    return Sensors(
        sensor_id=detector.sensor_id[live],
        xyz_m=detector.xyz_m[live],
        efficiency=detector.efficiency[live],
        neighbour=_neighbours(detector.sensor_id[live], detector.string_id[live]),
        tree=cKDTree(detector.xyz_m[live]),
    )


def _neighbours(sensor_id: Ints, string_id: Ints) -> Ints:
    """Find rows of neighbours by cable position: a dead DOM leaves a gap, it closes no distance."""
    row_of = dict(zip(sensor_id.tolist(), range(len(sensor_id)), strict=True))
    table = np.full((4, len(sensor_id)), -1, dtype=np.int64)
    for k, step in enumerate((-2, -1, 1, 2)):
        for row, (sensor, string) in enumerate(zip(sensor_id, string_id, strict=True)):
            other = row_of.get(int(sensor) + step, -1)
            if other >= 0 and string_id[other] == string:
                table[k, row] = other
    return table
