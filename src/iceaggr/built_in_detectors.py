"""The built-in detectors by name: IceCube-86 and those of the NuBench benchmark."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from functools import cache
from importlib import resources

import numpy as np
import numpy.typing as npt
import pandas as pd

from iceaggr.detector import (
    BUILT_IN,
    ICE,
    SAME_PLACE_M,
    WATER,
    Detector,
    Medium,
    icecube86,
)

_BELOW_SURFACE_M = 1948.07
"""Depth of IceCube's origin; NuBench's Hexagon has its sensors, with z from the surface."""
_HEIGHTS = {
    "cluster": (36, -1240.0, -700.0),
    "flower-s": (22, 0.0, 190.89),
    "flower-l": (18, -3500.0, -2888.0),
    "flower-xl": (20, -3375.0, -2805.0),
    "triangle": (20, -500.0, 500.0),
}
"""Sensors of each string at even distances, the z of the first and of the last one, metres.
Source, as of the strings' places: geometry tables of GraphNeT, commit 368927d (Apache-2.0), of the
benchmark of arXiv:2511.13111."""


def _hexagon(medium: Medium) -> Detector:
    known = icecube86()
    return Detector(
        sensor_id=known.sensor_id,
        xyz_m=known.xyz_m - [0.0, 0.0, _BELOW_SURFACE_M],
        string_id=known.string_id,
        efficiency=np.ones(known.n_sensors),
        in_use=np.ones(known.n_sensors, bool),
        stated_medium=medium,
    )


@cache
def _strings() -> pd.DataFrame:
    text = (
        resources.files("iceaggr.resources")
        .joinpath("nubench_strings.csv")
        .read_text(encoding="utf-8")
    )
    return pd.read_csv(io.StringIO(text))


def _even_strings(name: str) -> Detector:
    """Build a detector whose strings are alike: sensors are numbered string by string."""
    n, first_z_m, last_z_m = _HEIGHTS[name]
    strings = _strings()
    xy_m = strings.loc[strings["detector"] == name, ["x_m", "y_m"]].to_numpy()
    z_m = np.linspace(first_z_m, last_z_m, n)
    n_sensors = n * len(xy_m)
    return Detector(
        sensor_id=np.arange(n_sensors),
        xyz_m=np.column_stack([np.repeat(xy_m, n, axis=0), np.tile(z_m, len(xy_m))]),
        string_id=np.repeat(np.arange(len(xy_m)), n),
        efficiency=np.ones(n_sensors),
        in_use=np.ones(n_sensors, bool),
        stated_medium=WATER,
    )


_BUILDERS: dict[str, Callable[[], Detector]] = {
    BUILT_IN: icecube86,
    "hexagon": lambda: _hexagon(WATER),
    "hexagon-ice": lambda: _hexagon(ICE),
    **{name: lambda name=name: _even_strings(name) for name in _HEIGHTS},  # type: ignore[misc]
}
BUILT_IN_NAMES = tuple(_BUILDERS)
"""Names that are accepted wherever a geometry is."""
SET_TITLES = {
    "flower-xl": "Flower XL",
    "flower-l": "Flower L",
    "hexagon": "Hexagon",
    "hexagon-ice": "Hexagon Ice LE",
    "flower-s": "Flower S",
    "cluster": "Cluster",
    "triangle": "Triangle",
}
"""Detector -> NuBench's name of its set, in the benchmark's order. Source: arXiv:2511.13111."""


def built_in_name(given: str) -> str:
    """Find the built-in detector that is meant by its name or by that of NuBench's set, '' if none.

    Capitals, and what stands between the words, do not matter.
    """
    wanted = _plain(given)
    titles = {_plain(title): name for name, title in SET_TITLES.items()}
    return wanted if wanted in BUILT_IN_NAMES else titles.get(wanted, "")


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", "-", name.strip().lower())


@cache
def built_in_detector(name: str) -> Detector:
    """Build the detector of one of BUILT_IN_NAMES."""
    return _BUILDERS[name]()


def name_of(detector: Detector) -> str:
    """Name the built-in detector whose sensors stand at the same places in the same medium.

    Returns '' if it is none of them.
    """
    names = names_at(detector.xyz_m)
    return next((n for n in names if built_in_detector(n).medium == detector.medium), "")


def names_at(xyz_m: npt.NDArray[np.float64]) -> list[str]:
    """Name the built-in detectors whose sensors stand there, whatever their numbers and medium.

    xyz_m: (S, 3) metres, within a centimetre of the sensors in each coordinate.
    """
    same_size = [n for n in BUILT_IN_NAMES if built_in_detector(n).n_sensors == len(xyz_m)]
    return [name for name in same_size if len(np.unique(rows_at(name, xyz_m))) == len(xyz_m)]


def names_around(xyz_m: npt.NDArray[np.float64]) -> list[str]:
    """Name the built-in detectors that have a sensor at each place, as those of hits; [] for none.

    xyz_m: (K, 3) metres, within a centimetre of a sensor in each coordinate; [] where K is 0.
    """
    return [name for name in BUILT_IN_NAMES if len(rows_at(name, xyz_m))]


def rows_at(name: str, xyz_m: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Find the sensor of a built-in detector at each place: (K,) rows, (0,) if one has none."""
    from scipy.spatial import cKDTree  # here: each step imports this module, few ask for a name

    apart_m, row = cKDTree(built_in_detector(name).xyz_m).query(xyz_m, p=np.inf)
    return np.asarray(row if (apart_m <= SAME_PLACE_M).all() else row[:0], np.int64)


def detectors_table() -> str:
    """Lay out the built-in detectors, a line each: size, medium, extent, set and digest."""
    heads = ("name", "strings", "sensors", "medium", "extent x, y, z [m]", "NuBench set", "digest")
    rows = [heads, *(_row(name, built_in_detector(name)) for name in BUILT_IN_NAMES)]
    widths = [max(len(row[k]) for row in rows) for k in range(len(heads))]
    lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)


def _row(name: str, detector: Detector) -> tuple[str, ...]:
    low_m, high_m = detector.bounds_m
    return (
        name,
        f"{len(np.unique(detector.string_id)):,}",
        f"{detector.n_sensors:,}",
        detector.medium.name,
        ", ".join(f"{low:.0f} to {high:.0f}" for low, high in zip(low_m, high_m, strict=True)),
        SET_TITLES.get(name, "-"),
        detector.digest()[:16],
    )
