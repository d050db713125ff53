"""The live sensors of the built-in detector, in the form that the simulation searches."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from iceaggr.detector import icecube86
from iceaggr.events.simulation.ice import Floats

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
