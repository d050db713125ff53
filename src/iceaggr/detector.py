"""The detector: where each sensor is, how efficient and in which medium; IceCube-86 is built in."""

from __future__ import annotations

import csv
import hashlib
import io
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, cached_property
from importlib import resources

import numpy as np
import numpy.typing as npt
import pandas as pd

from iceaggr.errors import DetectorError

# Light in the medium around the sensors, which simulation and reconstruction share.

C_M_PER_NS = 0.299792458
"""Speed of light in vacuum, which muons reach: metres per nanosecond."""

N_PHASE = 1.3195
"""Phase refractive index of ice, which sets the Cherenkov angle. Source: IceTray I3Constants."""

N_GROUP = 1.35634
"""Group refractive index of ice, which sets the speed of light. Source: IceTray I3Constants."""


@dataclass(frozen=True)
class Medium:
    """What light travels through between source and sensor.

    n_phase, n_group: refractive indices; the first sets the Cherenkov angle, the second the speed
    scattering_m, delay_ns, absorption_m: of the Pandel density of arrival times. A delay seen at a
    distance d follows a Gamma distribution of shape d / scattering_m and of rate `delay_rate`.
    density: relative to fresh water, which sets how much a particle loses per metre
    """

    name: str
    n_phase: float
    n_group: float
    scattering_m: float
    delay_ns: float
    absorption_m: float
    density: float

    @property
    def cherenkov_rad(self) -> float:
        """Give the angle between a muon and its light, arccos(1 / n_phase)."""
        return math.acos(1 / self.n_phase)

    @property
    def light_ns_per_m(self) -> float:
        """Give the time that light takes per metre: 4.524 ns in ice, 4.602 ns in water."""
        return self.n_group / C_M_PER_NS

    @property
    def delay_per_distance(self) -> float:
        """Give the light path of the cone per metre of closest distance, in units of c t.

        0.917 in ice, 0.951 in water. Source: geometry of a cone that moves with c while its light
        moves with c / n_group.
        """
        angle = self.cherenkov_rad
        return self.n_group / math.sin(angle) - 1 / math.tan(angle)

    @property
    def delay_rate(self) -> float:
        """Give the rate of the Gamma distribution, per ns: absorption cuts off late light."""
        return 1 / self.delay_ns + C_M_PER_NS / self.n_group / self.absorption_m


ICE = Medium(
    "ice", N_PHASE, N_GROUP, scattering_m=33.29, delay_ns=556.7, absorption_m=98.0, density=0.917
)
"""South Pole ice at 400 nm. Source: IceTray I3Constants; D. Pandel 1996 for the delays, with the
constants of AMANDA ice H2 as in IceTray rpdf."""

_SEA_SCATTERING_M, _SEA_N_GROUP = 265.0, 1.3797
WATER = Medium(
    "water",
    n_phase=1.3499,
    n_group=_SEA_N_GROUP,
    scattering_m=_SEA_SCATTERING_M,
    delay_ns=ICE.delay_ns * _SEA_SCATTERING_M / ICE.scattering_m * _SEA_N_GROUP / N_GROUP,
    absorption_m=60.0,
    density=1.04,
)
"""Deep sea water at 460 to 473 nm. Source: indices of ANTARES as in km3pipe's constants; lengths of
blue light from ANTARES 2005, Astropart. Phys. 23, 131 (astro-ph/0412126), where the scattering
length is the effective one. No Pandel time is published for water: delays in ice, scaled as paths
of light scale with the scattering length, which is derived here and not fitted to data. Density:
Mediterranean water of 1.029 at the surface, 1 % denser under the pressure of 2.5 km."""

MEDIA = {medium.name: medium for medium in (ICE, WATER)}
"""The media by the names that a geometry, `iceaggr convert --medium` and reports use."""
MEDIUM_REMEDY = (
    "a column `medium` in the geometry, or `iceaggr convert --medium`, says water or ice"
)

BUILT_IN = "icecube86"
"""Name of the built-in geometry, accepted wherever a geometry URI is."""

Floats = npt.NDArray[np.float64]
_NEEDED = ("sensor_id", "x", "y", "z")
MIN_EXTENT_M, MAX_EXTENT_M = 5.0, 100_000.0
"""Of a detector in metres: a kilometre written in kilometres or in centimetres is outside."""
_SAME_STRING, _TURNED_SHARE = 0.2, 0.75
SAME_PLACE_M = 0.01
"""Within it, positions are those of one sensor, rounded."""
_COLUMNS = "a CSV with sensor_id, x, y, z once each, and string, efficiency, medium if known"
_REMEDY = "Write the geometry as docs/data_formats.md says, positions in metres"


@dataclass(frozen=True)
class Detector:
    """A sensor table, sorted by sensor_id.

    sensor_id:  (S,) int64, unique identity as in the pulses
    xyz_m:      (S, 3) float64, metres, z up
    string_id:  (S,) int64, or -1 everywhere when the table has no strings
    efficiency: (S,) float64, relative quantum efficiency; 1 where the table says nothing
    in_use:     (S,) bool, False for modules that the table lists without an efficiency
    stated_medium: what the geometry says it stands in, None if it does not say
    """

    sensor_id: npt.NDArray[np.int64]
    xyz_m: npt.NDArray[np.float64]
    string_id: npt.NDArray[np.int64]
    efficiency: npt.NDArray[np.float64]
    in_use: npt.NDArray[np.bool_]
    stated_medium: Medium | None = None

    @property
    def medium(self) -> Medium:
        """Give the medium whose constants fits use: ice if the geometry does not say."""
        return self.stated_medium or ICE

    @property
    def medium_words(self) -> str:
        """Say which medium that is, and what to do where nobody said so."""
        if self.stated_medium:
            return self.stated_medium.name
        return f"{ICE.name}, because the geometry does not say ({MEDIUM_REMEDY})"

    @property
    def n_sensors(self) -> int:
        """Count the sensors (S)."""
        return len(self.sensor_id)

    @cached_property
    def counts_from_zero(self) -> bool:
        """Tell whether the ids are the rows of the table."""
        return np.array_equal(self.sensor_id, np.arange(self.n_sensors))

    @cached_property
    def bounds_m(self) -> tuple[Floats, Floats]:
        """Give the least and the greatest coordinates: two arrays (3,) float64, metres."""
        return self.xyz_m.min(axis=0), self.xyz_m.max(axis=0)

    def string_keys(self) -> npt.NDArray[np.int64]:
        """Count strings from 0, (S,) int64; without ids, sensors above each other make one."""
        keys = self.string_id[:, None]
        if (keys < 0).any():
            keys = np.round(self.xyz_m[:, :2]).astype(np.int64)
        return np.unique(keys, axis=0, return_inverse=True)[1].ravel().astype(np.int64)

    def places_on_strings(self) -> npt.NDArray[np.int64]:
        """Count the sensors of each string from 0 at the top, (S,) int64."""
        string = self.string_keys()
        order = np.lexsort((-self.xyz_m[:, 2], string))
        n_before = np.cumsum(np.bincount(string)) - np.bincount(string)
        place = np.empty(self.n_sensors, np.int64)
        place[order] = np.arange(self.n_sensors) - n_before[string[order]]
        return place

    @cached_property
    def azimuth_period_deg(self) -> float:
        """Give the turn about the vertical that brings strings onto strings: 60 in a hexagon.

        360 / n degrees for n from 2 to 12, about the middle or a string near it, by which three in
        four strings come within a fifth of a spacing of one; 360 if no turn does.
        """
        from scipy.spatial import cKDTree  # here: each step imports this module, one asks this

        string = self.string_keys()
        counts = np.bincount(string)
        xy_m = np.column_stack([np.bincount(string, self.xyz_m[:, k]) / counts for k in (0, 1)])
        if len(xy_m) < 3:
            return 360.0
        tree = cKDTree(xy_m)
        near_m = _SAME_STRING * float(np.median(tree.query(xy_m, k=2)[0][:, 1]))
        middle = xy_m.mean(axis=0)
        centres = [middle, *xy_m[tree.query(middle, k=3)[1]]]
        best, period = near_m, 360.0
        for n in range(2, 13):
            cosine, sine = math.cos(2 * math.pi / n), math.sin(2 * math.pi / n)
            turn = np.array([[cosine, sine], [-sine, cosine]])
            for centre in centres:
                apart_m = tree.query((xy_m - centre) @ turn + centre)[0]
                # what is far is as far as any other: strings at the edge have no partner
                mean_m = float(np.minimum(apart_m, 2 * near_m).mean())
                if (apart_m <= near_m).mean() >= _TURNED_SHARE and mean_m < best + SAME_PLACE_M:
                    best, period = mean_m, 360.0 / n
        return period

    def sensor_idx(self, sensor_id: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
        """Find the table row of each sensor.

        sensor_id: (K,) integer. Returns (K,) int64 rows, -1 for a sensor not in the table.
        """
        sensor_id = np.asarray(sensor_id)
        if self.counts_from_zero:
            known = (sensor_id >= 0) & (sensor_id < self.n_sensors)
            return np.where(known, sensor_id, -1).astype(np.int64)
        row = np.searchsorted(self.sensor_id, sensor_id).clip(max=self.n_sensors - 1)
        return np.where(self.sensor_id[row] == sensor_id, row, -1).astype(np.int64)

    def difference_from(self, other: Detector) -> str:
        """Say in what this table differs from another.

        '' if all sensors stand within 1 cm, in the same medium.
        """
        if not np.array_equal(self.sensor_id, other.sensor_id):
            return f"{self.n_sensors} sensors, other sensor ids"
        apart_m = float(np.abs(self.xyz_m - other.xyz_m).max())
        if apart_m > SAME_PLACE_M:
            return f"{self.n_sensors} sensors, {apart_m:.2f} m apart"
        if self.medium != other.medium:
            return f"the same sensors, but in {self.medium.name}, not in {other.medium.name}"
        return ""

    def to_csv(self) -> str:
        """Write the table so that `parse_geometry` reads the very same one again."""
        columns: dict[str, npt.NDArray[np.generic]] = {"sensor_id": self.sensor_id}
        columns |= {name: self.xyz_m[:, axis] for axis, name in enumerate("xyz")}
        if (self.string_id >= 0).any():
            columns["string"] = self.string_id
        columns["efficiency"] = np.where(self.in_use, self.efficiency, np.nan)
        if self.stated_medium:
            columns["medium"] = np.full(self.n_sensors, self.stated_medium.name)
        return pd.DataFrame(columns).to_csv(index=False, lineterminator="\n")

    def digest(self) -> str:
        """Hash the whole table: 64 hex digits, the same for the same sensors in the same medium.

        Ice adds nothing, so that tables from before media were told keep their digest.
        """
        hashed = hashlib.sha256()
        for column in (
            self.sensor_id,
            self.xyz_m,
            self.string_id,
            self.efficiency,
            self.in_use,
        ):
            hashed.update(np.ascontiguousarray(column).data)
        if self.medium != ICE:
            hashed.update(self.medium.name.encode())
        return hashed.hexdigest()


@cache
def icecube86() -> Detector:
    """Load the built-in IceCube-86 table: 86 strings of 60 DOMs, origin at 1948.07 m depth.

    Source: published IceCube-86 coordinates; efficiencies from the GraphNeT detector table.
    """
    text = (
        resources.files("iceaggr.resources").joinpath("icecube86.csv").read_text(encoding="utf-8")
    )
    return replace(parse_geometry(text, where=BUILT_IN), stated_medium=ICE)


def parse_geometry(text: str | bytes, where: str) -> Detector:
    """Read a geometry CSV: sensor_id, x, y, z (metres); string, efficiency, medium are optional.

    An empty efficiency means a module that is not in use. The medium is the same in every row.
    Raises: DetectorError naming row and column if one is missing, no number or out of range, or if
    a sensor occurs twice; or if the sensors together extend too little or too far for metres.
    """
    rows = _Rows(text, where)
    sensor_id = rows.numbers("sensor_id", "a whole number", _is_whole)
    order = np.argsort(sensor_id, kind="stable")
    _refuse_twice(sensor_id[order], where)
    xyz_m = np.stack([rows.numbers(axis, "metres within 1000 km", _is_near) for axis in "xyz"], 1)
    _refuse_other_unit(xyz_m, where)
    string_id, efficiency = np.full(len(order), -1.0), np.ones(len(order))
    if "string" in rows.names:
        string_id = rows.numbers("string", "a whole number from -1 on", _is_string_id)
    if "efficiency" in rows.names:
        efficiency = rows.numbers("efficiency", "positive, or empty if not in use", _is_efficiency)
    in_use = ~np.isnan(efficiency)
    return Detector(
        sensor_id=sensor_id[order].astype(np.int64),
        xyz_m=xyz_m[order],
        string_id=string_id[order].astype(np.int64),
        efficiency=np.where(in_use, efficiency, 1.0)[order],
        in_use=in_use[order],
        stated_medium=rows.medium() if "medium" in rows.names else None,
    )


def medium_of(name: str, where: str) -> Medium:
    """Find a medium by its name, in any case of letters. Raises: DetectorError."""
    found = MEDIA.get(name.strip().lower())
    if found is None:
        raise DetectorError(
            "unknown medium",
            where=where,
            found=repr(name[:40]),
            expected=" or ".join(MEDIA),
            remedy="Name what the sensors stand in, or leave the medium out: it is then taken as"
            " ice, and told so",
        )
    return found


def _is_whole(values: Floats) -> npt.NDArray[np.bool_]:
    # up to 2^53 every whole number is a float64
    return (np.abs(values) <= 2.0**53) & (values == np.floor(values))


def _is_near(values: Floats) -> npt.NDArray[np.bool_]:
    return np.abs(values) <= 1e6


def _is_string_id(values: Floats) -> npt.NDArray[np.bool_]:
    return _is_whole(values) & (values >= -1)


def _is_efficiency(values: Floats) -> npt.NDArray[np.bool_]:
    return np.isnan(values) | ((values > 1e-6) & (values < 1e6))


class _Rows:
    """The cells of a geometry CSV, each still with its line."""

    def __init__(self, text: str | bytes, where: str) -> None:
        self.where = where
        lines = list(_lines(text, where))
        self.names = [name.strip() for name in lines[0][1]] if lines else []
        self.rows = lines[1:]
        unique = set(self.names)
        if not unique.issuperset(_NEEDED) or len(unique) != len(self.names):
            raise self._refused("geometry lacks columns or has one twice", self.names, _COLUMNS)
        if not self.rows:
            raise self._refused("geometry has no sensors", "no row", "at least one row")
        for line, cells in self.rows:
            if len(cells) != len(self.names):
                found, expected = f"{len(cells)} cells", f"{len(self.names)} as in the header"
                raise self._refused("geometry row is broken", found, expected, f" line {line}")

    def numbers(
        self, name: str, expected: str, accepts: Callable[[Floats], npt.NDArray[np.bool_]]
    ) -> Floats:
        """Read a column: (S,) float64, NaN where an optional cell is empty."""
        column = self.names.index(name)
        cells = [row[column].strip() for _, row in self.rows]
        values = np.array([_number(cell) for cell in cells])
        wrong = ~accepts(values) | (np.isnan(values) & np.array([bool(cell) for cell in cells]))
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            found, place = repr(cells[row][:40]), f" line {self.rows[row][0]}"
            raise self._refused(f"geometry column {name} is out of range", found, expected, place)
        return values

    def medium(self) -> Medium:
        """Read the column `medium`, which has one value in all rows."""
        column = self.names.index("medium")
        media = {row[column].strip().lower(): line for line, row in reversed(self.rows)}
        if len(media) > 1:
            found = " and ".join(repr(name[:40]) for name in sorted(media))
            raise self._refused("geometry names several media", found, "one medium in all rows")
        ((name, line),) = media.items()
        return medium_of(name, f"{self.where} line {line}, column medium")

    def _refused(self, what: str, found: object, expected: str, place: str = "") -> DetectorError:
        where = f"{self.where}{place}"
        return DetectorError(what, where=where, found=found, expected=expected, remedy=_REMEDY)


def _lines(text: str | bytes, where: str) -> Iterator[tuple[int, list[str]]]:
    """Give the number and the cells of each line that is not empty."""
    try:
        decoded = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        reader = csv.reader(io.StringIO(decoded, newline=""), strict=True)
        for cells in reader:
            if cells:
                yield reader.line_num, cells
    except (csv.Error, UnicodeDecodeError) as error:
        raise DetectorError(
            "geometry is not CSV",
            where=where,
            found=str(error),
            expected=_COLUMNS,
            remedy=_REMEDY,
        ) from None


def _number(cell: str) -> float:
    try:
        return float(cell) if "_" not in cell else math.nan
    except ValueError:
        return math.nan


def _refuse_other_unit(xyz_m: Floats, where: str) -> None:
    """Refuse positions that cannot be metres; a single sensor has no extent to judge."""
    extent_m = float(np.ptp(xyz_m, axis=0).max())
    if len(xyz_m) > 1 and not MIN_EXTENT_M <= extent_m <= MAX_EXTENT_M:
        raise DetectorError(
            "geometry is not in metres",
            where=where,
            found=f"{len(xyz_m)} sensors within {extent_m:.4g}",
            expected=f"a detector of {MIN_EXTENT_M:g} to {MAX_EXTENT_M:g} m",
            remedy=_REMEDY,
        )


def _refuse_twice(sensor_id: Floats, where: str) -> None:
    twice = sensor_id[1:][sensor_id[1:] == sensor_id[:-1]]
    if len(twice):
        raise DetectorError(
            "geometry lists a sensor twice",
            where=where,
            found=f"sensor_id {twice[0]:.0f} {1 + np.count_nonzero(twice == twice[0])} times",
            expected="one row per sensor",
            remedy="Remove the rows that do not belong to this detector",
        )
