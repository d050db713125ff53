"""Which sensor recorded a pulse of a foreign file, and where all sensors stand."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.spatial import cKDTree

from iceaggr.built_in_detectors import (
    built_in_detector,
    built_in_name,
    names_around,
    names_at,
    rows_at,
)
from iceaggr.detector import (
    BUILT_IN,
    SAME_PLACE_M,
    WATER,
    Detector,
    Medium,
    medium_of,
    parse_geometry,
)
from iceaggr.errors import DetectorError, RawDataError
from iceaggr.events.schema import ParquetReader
from iceaggr.events.sources import ChosenTable, GivenNames, choose_geometry, counts_on_each_string

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
SensorKey = Literal["auto", "column", "string", "position"]
N_PER_STRING = 1000
"""Sensors that a string may have where the id is made of string and place on it."""
_MODULES = "### Modules ###"
_REMEDY = (
    "Give a CSV with sensor_id, x, y, z, a Parquet table, or Prometheus' .geo, in metres, or with"
    " the unit in the name: x_cm, X (cm)"
)


@dataclass(frozen=True)
class SensorTable:
    """A geometry that was given. pair: (S,) int64, string and dom of each sensor as one number,
    -1 everywhere if the table does not tell them.
    """

    detector: Detector
    pair: Ints


def pairs(string: Ints, dom: Ints, where: str) -> Ints:
    """Make one number of string and dom: (n,) int64. Raises: RawDataError if it cannot be."""
    wrong = (string < 0) | (string > 1_000_000) | (dom < 0) | (dom >= N_PER_STRING)
    if wrong.any():
        raise RawDataError(
            "string and dom make no sensor",
            where=where,
            found=f"string {string[wrong][0]}, dom {dom[wrong][0]}",
            expected=f"string from 0 on, dom from 0 to {N_PER_STRING - 1}",
            remedy="Name their columns: --column string=... --column dom=...",
        )
    return string * N_PER_STRING + dom


def read_geometry(given: str) -> SensorTable:
    """Read what --geometry names: a file, or a built-in detector by its name.

    Raises: DetectorError if it cannot be read or is no geometry; RawDataError if pandas' index
    counts other rows.
    """
    if name := built_in_name(given):
        table = built_in_detector(name)
        # all strings are alike, and sensors are numbered string by string
        n_per_string = table.n_sensors // len(np.unique(table.string_id))
        return SensorTable(table, pairs(table.string_id, table.sensor_id % n_per_string + 1, given))
    path = Path(given)
    medium = ""
    try:
        if path.suffix == ".geo":
            frame, medium = _read_geo(path)
        elif path.suffix.lower() in (".parquet", ".pq"):
            with pq.ParquetFile(path) as file:
                frame = ParquetReader(file, given).read().to_pandas(ignore_metadata=True)
        else:
            frame = pd.read_csv(path)
    except (OSError, ValueError, pa.ArrowException) as error:
        found = str(getattr(error, "strerror", None) or error).splitlines()[0]
        raise _no_geometry(given, found, "a file that can be read") from None
    sensors = _sensor_table(frame, given)
    if medium:
        stated = medium_of(medium, f"--geometry {given}, Medium of its metadata")
        return replace(sensors, detector=replace(sensors.detector, stated_medium=stated))
    return sensors


def _read_geo(path: Path) -> tuple[pd.DataFrame, str]:
    """Read a detector of Prometheus: its modules, tab-separated, and its medium or ''.

    The modules: x, y, z, string and dom of each.
    """
    metadata, _, modules = path.read_text(encoding="utf-8").partition(_MODULES)
    names = ["x", "y", "z", "string", "dom"]
    medium = re.search(r"^\s*medium\s*:[ \t]*(.*\S)", metadata, re.IGNORECASE | re.MULTILINE)
    frame = pd.read_csv(io.StringIO(modules.strip()), sep=r"\s+", names=names)
    return frame, medium[1] if medium else ""


def chosen_medium(given: str, table: SensorTable | None) -> tuple[Medium | None, str]:
    """Decide what the detector stands in, and say who says so.

    given: name of --medium, '' if not given. Returns None for the medium if nobody says it.
    Raises: DetectorError if the name is none, or the geometry says another one.
    """
    flag = medium_of(given, "--medium") if given else None
    stated = table.detector.stated_medium if table else None
    if flag and stated and flag != stated:
        raise DetectorError(
            "the medium contradicts the geometry",
            where=f"--medium {flag.name}",
            found=f"a geometry that says {stated.name}",
            expected="one medium",
            remedy="Leave --medium out, or correct the geometry",
        )
    if flag or stated:
        chosen = flag or stated
        assert chosen is not None
        return chosen, f"{chosen.name}, as {'--medium' if flag else 'the geometry'} says"
    # the places of NuBench's Hexagon stand in ice in one of its sets
    known = names_at(table.detector.xyz_m) if table else []
    if len(known) == 1 and built_in_detector(known[0]).medium == WATER:
        return WATER, f"{WATER.name}, as these sensors are those of {known[0]} (built in)"
    return None, "taken as ice, because nothing says it (--medium water or --medium ice does)"


def _sensor_table(frame: pd.DataFrame, given: str) -> SensorTable:
    columns = choose_geometry([str(name) for name in frame.columns], GivenNames())
    has_pair = {"string", "dom"} <= set(columns)
    if not {"x_m", "y_m", "z_m"} <= set(columns) or not (has_pair or "sensor_id" in columns):
        found = ", ".join(map(str, frame.columns))
        raise _no_geometry(given, f"columns {found}", "x, y, z, and sensor_id or string and dom")
    try:
        taken = {n: frame[c].to_numpy(np.float64) * f for n, (c, f) in columns.items()}
    except ValueError as error:
        raise _no_geometry(given, str(error), "numbers only") from None
    pair = np.full(len(frame), -1)
    if has_pair:
        pair = pairs(_ids(taken["string"], given), _ids(taken["dom"], given), f"--geometry {given}")
    ids = _ids(taken["sensor_id"], given) if "sensor_id" in taken else pair
    table = pd.DataFrame({"sensor_id": ids})
    table = table.assign(x=taken["x_m"], y=taken["y_m"], z=taken["z_m"])
    if "string" in taken:
        table["string"] = _ids(taken["string"], given)
    if "efficiency" in taken:
        table["efficiency"] = taken["efficiency"]
    for name in frame.columns:
        if str(name).strip().lower() == "medium":
            table["medium"] = frame[name].to_numpy()
    detector = parse_geometry(table.to_csv(index=False), f"--geometry {given}")
    return SensorTable(detector, pair[np.argsort(ids, kind="stable")])


def _ids(values: Floats, given: str) -> Ints:
    if not np.isfinite(values).all() or (values != np.floor(values)).any():
        raise _no_geometry(given, "an id that is missing or has a fraction", "whole numbers")
    return values.astype(np.int64)


def _no_geometry(given: str, found: str, expected: str) -> DetectorError:
    return DetectorError(
        "not a geometry",
        where=f"--geometry {given}",
        found=found,
        expected=expected,
        remedy=_REMEDY,
    )


class Sensors:
    """Numbers the sensors of the pulses as they are read, and tells the detector in the end.

    The number depends on what the source says of the sensor only, so that two halves of one file
    number it alike.
    """

    def __init__(self, chosen: ChosenTable, table: SensorTable | None, by: SensorKey) -> None:
        """by: what tells a sensor: its id's column, string and dom, or its place.

        Raises: RawDataError if the pulses or the geometry do not have that.
        """
        self._chosen, self._table = chosen, table
        self.by = self._resolved(by, set(chosen.columns))
        self.has_positions = {"x_m", "y_m", "z_m"} <= set(chosen.columns)
        self._key, self._xyz = np.empty(0, np.int64), np.empty((0, 3))
        self._string = np.empty(0, np.int64)
        self._tree = cKDTree(table.detector.xyz_m) if table and self.by == "position" else None

    def _resolved(self, by: SensorKey, has: set[str]) -> SensorKey:
        on_string = "string" in has and bool(has & {"dom", "sensor_id"})
        possible = {"column": "sensor_id" in has, "string": on_string, "position": "x_m" in has}
        table = self._table
        if table:
            possible["string"] &= bool((table.pair >= 0).all())
        else:
            possible["position"] = False
        if by == "auto" and possible["string"] and counts_on_each_string(self._chosen):
            by = "string"
        if by == "auto":
            by = next((key for key, can in possible.items() if can), "auto")  # type: ignore[misc]
        if not possible.get(by, False):
            raise RawDataError(
                "nothing tells which sensor recorded a pulse",
                where=f"table {self._chosen.name}, --sensor-ids {by}",
                found=f"columns {', '.join(sorted(has))}" + ("" if table else ", no geometry"),
                expected="a sensor_id, a string and dom, or a place together with --geometry",
                remedy="Name the columns with --column, or give the sensor table with --geometry",
            )
        if not table and "x_m" not in has:
            raise RawDataError(
                "nothing tells where the sensors stand",
                where=f"table {self._chosen.name}",
                found=f"columns {', '.join(sorted(has))}, no geometry",
                expected="positions of the pulses' sensors, or a sensor table",
                remedy=f"Give it with --geometry FILE; --geometry {BUILT_IN} is the built-in one",
            )
        return by

    @property
    def fields(self) -> list[str]:
        """Name the fields of the pulses that tell the sensor."""
        told = {"column": ("sensor_id",), "string": ("string", self.on_string), "position": ()}
        places = ("x_m", "y_m", "z_m") if self.has_positions else ()
        extra = ("string",) if self.by == "column" and "string" in self._chosen.columns else ()
        return list(dict.fromkeys((*told[self.by], *places, *extra)))

    @property
    def on_string(self) -> str:
        """Name the field that numbers the sensors of one string."""
        return "dom" if "dom" in self._chosen.columns else "sensor_id"

    def number(self, ids: Mapping[str, Ints], xyz_m: Floats | None, where: str) -> Ints:
        """Give each pulse the number of its sensor.

        Returns (n,) int64, the sensor_id or, before `detector` knows it, what stands for it.
        ids: the fields of `fields` but for the place, each (n,).  xyz_m: (n, 3) or None.
        Raises: RawDataError if a sensor stands at two places, or is not in the geometry.
        """
        if xyz_m is not None and not np.isfinite(xyz_m).all():
            raise self._refused("the place of a sensor is missing", where, "NaN or null", "Mend it")
        if self.by == "position":
            assert self._table is not None
            assert xyz_m is not None
            assert self._tree is not None
            distance, row = self._tree.query(xyz_m)
            if (distance > SAME_PLACE_M).any():
                found = f"a pulse at {_shown(xyz_m[np.argmax(distance)])}"
                found += f", {distance.max():.3g} m from the nearest sensor"
                raise self._refused("a pulse is at no sensor of the geometry", where, found)
            return np.asarray(self._table.detector.sensor_id[row])
        key = (
            ids["sensor_id"]
            if self.by == "column"
            else pairs(ids["string"], ids[self.on_string], where)
        )
        if self._table is not None and xyz_m is None:
            return self._in_table(key, None, where)
        unique, first, inverse = np.unique(key, return_index=True, return_inverse=True)
        places = None
        if xyz_m is not None:
            places = xyz_m[first]
            self._refuse_apart(key, xyz_m, places[inverse], where)
        if self._table is not None:
            unique = self._in_table(unique, places, where)
        elif places is not None:
            string = ids["string"][first] if "string" in ids else np.full(len(unique), -1)
            self._remember(unique, places, string, where)
        return np.asarray(unique[inverse], np.int64)

    def _in_table(self, key: Ints, places: Floats | None, where: str) -> Ints:
        """Find the sensors of the geometry, and compare their places."""
        assert self._table is not None
        detector = self._table.detector
        known = detector.sensor_id if self.by == "column" else self._table.pair
        order = np.argsort(known, kind="stable")
        at = order[np.searchsorted(known, key, sorter=order).clip(max=len(known) - 1)]
        absent = known[at] != key
        if absent.any():
            found = f"{np.count_nonzero(absent)} sensors such as {self._named(key[absent][0])}"
            raise self._refused("pulses of sensors that the geometry lacks", where, found)
        if places is not None:
            apart = np.abs(places - detector.xyz_m[at]).max(axis=1)
            if (apart > SAME_PLACE_M).any():
                k = int(np.argmax(apart))
                found = f"{self._named(key[k])} at {_shown(places[k])}, in the geometry at "
                found += _shown(detector.xyz_m[at][k])
                remedy = "Give the geometry of these events; --sensor-ids position goes by place"
                raise self._refused("pulses and geometry disagree", where, found, remedy)
        return np.asarray(detector.sensor_id[at])

    def _remember(self, key: Ints, places: Floats, string: Ints, where: str) -> None:
        at = np.searchsorted(self._key, key).clip(max=max(len(self._key) - 1, 0))
        known = self._key[at] == key if len(self._key) else np.zeros(len(key), bool)
        if known.any():
            self._refuse_apart(key[known], places[known], self._xyz[at[known]], where)
        if not known.all():
            joined = np.concatenate([self._key, key[~known]])
            order = np.argsort(joined, kind="stable")
            self._key = joined[order]
            self._xyz = np.concatenate([self._xyz, places[~known]])[order]
            self._string = np.concatenate([self._string, string[~known]])[order]

    def _refuse_apart(self, key: Ints, xyz_m: Floats, expected_m: Floats, where: str) -> None:
        apart = np.abs(xyz_m - expected_m).max(axis=1)
        if (apart > SAME_PLACE_M).any():
            k = int(np.argmax(apart))
            found = f"{self._named(key[k])} at {_shown(xyz_m[k])} and at {_shown(expected_m[k])}"
            can = self.by == "column" and "string" in self._chosen.columns
            remedy = (
                "--sensor-ids string, if its number counts on each string anew"
                if can
                else "Correct the positions in the source; nothing is averaged here"
            )
            raise self._refused("sensor stands at two places", where, found, remedy)

    def _named(self, key: int) -> str:
        if self.by == "column":
            return f"sensor_id {key}"
        return f"string {key // N_PER_STRING} {self.on_string} {key % N_PER_STRING}"

    def _refused(self, what: str, where: str, found: str, remedy: str = "") -> RawDataError:
        return RawDataError(
            what,
            where=f"{where} {self._chosen.name}",
            found=found,
            expected="one known place for each sensor",
            remedy=remedy or "Give the geometry that belongs to these events with --geometry",
        )

    def detector(self) -> tuple[Detector, dict[str, Ints], str]:
        """Tell the detector when all pulses are read.

        Returns it, the numbers that `number` gave beside the sensor_id that each stands for, both
        ascending by number and empty where they are the same, and a sentence on where it is from.
        """
        if self._table is not None:
            n_sensors = self._table.detector.n_sensors
            return self._table.detector, {}, f"geometry: the {n_sensors} sensors that were given"
        names = names_around(self._xyz)
        if names:
            known, row = built_in_detector(names[0]), rows_at(names[0], self._xyz)
            if len({built_in_detector(name).medium for name in names}) > 1:
                # the same places in water and in ice, and nobody says which
                known = replace(known, stated_medium=None)
            sentence = (
                f"geometry: the {len(row)} sensors that recorded a pulse stand where those of"
            )
            sentence += f" {' and '.join(names)} do; the whole table is taken"
            return known, {"number": self._key, "sensor_id": known.sensor_id[row]}, sentence
        n_sensors = len(self._key)
        found = Detector(
            sensor_id=self._key,
            xyz_m=self._xyz,
            string_id=self._string,
            efficiency=np.ones(n_sensors),
            in_use=np.ones(n_sensors, bool),
        )
        sentence = f"geometry: incomplete, only the {n_sensors} sensors that recorded a pulse are"
        return found, {}, f"{sentence} known (--geometry gives the full table)"


def _shown(xyz_m: Floats) -> str:
    return "({:.2f}, {:.2f}, {:.2f}) m".format(*xyz_m)
