"""The detector: where each sensor is and how efficient, IceCube-86 built in, any CSV accepted."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np
import numpy.typing as npt
import pandas as pd

from iceaggr.errors import DetectorError

BUILT_IN = "icecube86"
"""Name of the built-in geometry, accepted wherever a geometry URI is."""


@dataclass(frozen=True)
class Detector:
    """A sensor table, sorted by sensor_id.

    sensor_id:  (S,) int64, unique identity as in the pulses
    xyz_m:      (S, 3) float64, metres, z up
    string_id:  (S,) int64, or -1 everywhere when the table has no strings
    efficiency: (S,) float64, relative quantum efficiency; 1 where the table says nothing
    in_use:     (S,) bool, False for modules that the table lists without an efficiency
    """

    sensor_id: npt.NDArray[np.int64]
    xyz_m: npt.NDArray[np.float64]
    string_id: npt.NDArray[np.int64]
    efficiency: npt.NDArray[np.float64]
    in_use: npt.NDArray[np.bool_]

    @property
    def n_sensors(self) -> int:
        """Count the sensors (S)."""
        return len(self.sensor_id)

    def sensor_idx(self, sensor_id: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
        """Find the table row of each sensor.

        sensor_id: (K,) integer. Returns (K,) int64 rows, -1 for a sensor not in the table.
        """
        sensor_id = np.asarray(sensor_id)
        if np.array_equal(self.sensor_id, np.arange(self.n_sensors)):
            known = (sensor_id >= 0) & (sensor_id < self.n_sensors)
            return np.where(known, sensor_id, -1).astype(np.int64)
        row = np.searchsorted(self.sensor_id, sensor_id).clip(max=self.n_sensors - 1)
        return np.where(self.sensor_id[row] == sensor_id, row, -1).astype(np.int64)

    def to_csv(self) -> str:
        """Write the table so that `parse_geometry` reads the very same one again."""
        columns: dict[str, npt.NDArray[np.generic]] = {"sensor_id": self.sensor_id}
        columns |= {name: self.xyz_m[:, axis] for axis, name in enumerate("xyz")}
        if (self.string_id >= 0).any():
            columns["string"] = self.string_id
        columns["efficiency"] = np.where(self.in_use, self.efficiency, np.nan)
        return pd.DataFrame(columns).to_csv(index=False, lineterminator="\n")

    def digest(self) -> str:
        """Hash the whole table: 64 hex digits, the same for the same sensors."""
        hashed = hashlib.sha256()
        for column in (
            self.sensor_id,
            self.xyz_m,
            self.string_id,
            self.efficiency,
            self.in_use,
        ):
            hashed.update(np.ascontiguousarray(column).data)
        return hashed.hexdigest()


@cache
def icecube86() -> Detector:
    """Load the built-in IceCube-86 table: 86 strings of 60 DOMs, origin at 1948.07 m depth.

    Source: published IceCube-86 coordinates; efficiencies from the GraphNeT detector table.
    """
    text = resources.files("iceaggr.resources").joinpath("icecube86.csv").read_text()
    return parse_geometry(text, where=BUILT_IN)


def parse_geometry(text: str | bytes, where: str) -> Detector:
    """Read a geometry CSV: sensor_id, x, y, z (metres); string and efficiency are optional.

    Raises: DetectorError if a column is missing, a value is not finite, or a sensor occurs twice.
    """
    table = _read_csv(text, where)
    _check(table, where)
    table = table.sort_values("sensor_id", kind="stable")
    n_sensors = len(table)
    string_id = table["string"].to_numpy(np.int64) if "string" in table else np.full(n_sensors, -1)
    listed = (
        table["efficiency"].to_numpy(np.float64) if "efficiency" in table else np.ones(n_sensors)
    )
    in_use = np.isfinite(listed)
    return Detector(
        sensor_id=table["sensor_id"].to_numpy(np.int64),
        xyz_m=table[["x", "y", "z"]].to_numpy(np.float64),
        string_id=string_id.astype(np.int64),
        efficiency=np.where(in_use, listed, 1.0),
        in_use=in_use,
    )


def _read_csv(text: str | bytes, where: str) -> pd.DataFrame:
    raw = text.encode() if isinstance(text, str) else text
    try:
        table = pd.read_csv(io.BytesIO(raw))
    except (ValueError, UnicodeDecodeError) as error:
        raise DetectorError("geometry is not CSV", where=where, found=str(error)) from None
    missing = [name for name in ("sensor_id", "x", "y", "z") if name not in table]
    if missing:
        raise DetectorError(
            "geometry lacks columns",
            where=where,
            found=list(table.columns),
            expected=f"also {missing}",
            remedy="Give sensor_id,x,y,z with positions in metres",
        )
    if table.empty:
        raise DetectorError("geometry has no sensors", where=where, expected="at least one row")
    return table


def _check(table: pd.DataFrame, where: str) -> None:
    for name in ("sensor_id", "x", "y", "z"):
        values = pd.to_numeric(table[name], errors="coerce").to_numpy(np.float64)
        if not np.isfinite(values).all():
            row = int(np.flatnonzero(~np.isfinite(values))[0])
            raise DetectorError(
                f"geometry column {name} is not a finite number",
                where=f"{where} row {row + 2}",
                found=repr(table[name].iloc[row]),
                expected="a finite number",
            )
    sensor_id = table["sensor_id"].to_numpy(np.float64)
    if (sensor_id != np.floor(sensor_id)).any():
        raise DetectorError("geometry sensor_id is not an integer", where=where)
    twice = table["sensor_id"][table["sensor_id"].duplicated()]
    if len(twice):
        raise DetectorError(
            "geometry lists a sensor twice",
            where=where,
            found=f"sensor_id {twice.iloc[0]}",
            expected="one row per sensor",
        )
