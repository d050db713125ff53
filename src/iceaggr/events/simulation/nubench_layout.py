"""Simulated events in NuBench's layouts: SQLite, or GraphNeT's Parquet folders, with selections.

    merged/merged.db               tables mc_truth, merged_photons, pulses_no_noise
    merged/TABLE/TABLE_N.parquet   or the same in parts of the same events, index event_no
    geometry.parquet               all sensors, GraphNeT's columns and the medium
    selections/                    a fifth of the events for testing, the rest for training

Directions in the truth are those of where the neutrino, or its muon, came from.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
import pandas as pd

from iceaggr.detector import Detector
from iceaggr.errors import RawDataError
from iceaggr.interfaces import ObjectStore

Layout = Literal["nubench-sqlite", "nubench-parquet"]
Frames = Mapping[str, pd.DataFrame]
Describe = Callable[[Any, np.ndarray], Any]
"""Events and their ids -> a table with a row of truth for each, as our own files have it."""
TEST_SHARE = 0.2
_TRUTH = {
    "initial_state_energy": "energy_gev",
    "initial_state_type": "flavour",
    "initial_state_zenith": "zenith",
    "initial_state_azimuth": "azimuth",
    "initial_state_x": "vertex_x_m",
    "initial_state_y": "vertex_y_m",
    "initial_state_z": "vertex_z_m",
    "bjorken_x": "bjorken_x",
    "bjorken_y": "inelasticity",
    "visible_inelasticity": "visible_inelasticity",
    "muon_zenith": "muon_zenith",
    "muon_azimuth": "muon_azimuth",
}
"""Their column of mc_truth: ours."""
_SELECTIONS = ("train", "test")


class NuBenchWriter:
    """Writes tables as events arrive and the selections last, when all are in place.

    Memory holds the events of one part; a database grows on the local disk and is moved at the end.
    """

    def __init__(
        self,
        store: ObjectStore,
        out_uri: str,
        layout: Layout,
        detector: Detector,
        scratch: Path,
        first_id: int,
        n_events_per_part: int,
        seed: int,
        describe: Describe,
    ) -> None:
        """first_id: of the events, which count from there.  seed: of the selections.

        scratch: empty local folder.
        """
        self._store, self._out_uri, self._layout = store, out_uri.rstrip("/"), layout
        self._detector, self._scratch, self._describe = detector, scratch, describe
        self._first_id, self._per_part = first_id, n_events_per_part
        self._rng = np.random.default_rng(np.random.SeedSequence([seed, 2511]))
        self._string = detector.string_keys() if (detector.string_id < 0).any() else None
        self._database: sqlite3.Connection | None = None
        self._waiting: list[Frames] = []
        self._n_waiting = self._n_done = 0
        self._is_test: list[np.ndarray] = []
        self.n_files = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._database is not None:
            self._database.close()

    def claim(self, marker: str, settings: bytes) -> None:
        """Take an empty folder or one's own unfinished rest, and write marker and geometry.

        Raises: RawDataError if the folder holds a complete set, or another writer's files.
        """
        present = [stored.uri for stored in self._store.list(f"{self._out_uri}/")]
        is_complete = self._uri("selections/test_selection.parquet") in present
        if is_complete or (present and self._uri(marker) not in present):
            raise RawDataError(
                "folder already holds a complete set"
                if is_complete
                else "folder holds files that another writer wrote",
                where=self._out_uri,
                found=present[0].removeprefix(f"{self._out_uri}/"),
                expected="an empty folder",
                remedy="Choose another folder, or delete this one if nobody needs it",
            )
        self._store.write_bytes(self._uri(marker), settings)
        for uri in present:
            if uri != self._uri(marker):
                self._store.delete(uri)
        self._publish(self._geometry(), "geometry.parquet")

    def add(self, events: Any) -> None:
        """Append events, each with its pulses with and without noise."""
        n_events = len(events.n_pulses)
        event_no = self._first_id + self._n_done + np.arange(n_events)
        self._n_done += n_events
        self._is_test.append(self._rng.random(n_events) < TEST_SHARE)
        photons = self._photons(events, event_no)
        self._waiting.append(
            {
                "mc_truth": _truth(self._describe(events, event_no).to_pandas(), event_no),
                "merged_photons": photons,
                "pulses_no_noise": photons[~events.dark],
            }
        )
        self._n_waiting += n_events
        if self._n_waiting >= self._per_part:
            self._flush()

    def finish(self) -> None:
        """Write what waits, then the selections: only now the set is complete."""
        if self._n_waiting:
            self._flush()
        if self._database is not None:
            for table in ("merged_photons", "pulses_no_noise"):
                self._database.execute(f"CREATE INDEX event_no_{table} ON {table} (event_no)")
            self._database.commit()
            self._database.close()
            self._database = None
            self._store.upload(self._scratch / "merged.db", self._uri("merged/merged.db"))
            self.n_files = 1
        is_test = np.concatenate(self._is_test)
        event_no = self._first_id + np.arange(len(is_test))
        for name, rows in zip(_SELECTIONS, (~is_test, is_test), strict=True):
            frame = pd.DataFrame({"event_no": event_no[rows]})
            self._publish(frame, f"selections/{name}_selection.parquet")

    def _flush(self) -> None:
        tables = {
            name: pd.concat([part[name] for part in self._waiting], ignore_index=True)
            for name in self._waiting[0]
        }
        self._waiting, self._n_waiting = [], 0
        if self._layout == "nubench-sqlite":
            self._insert(tables)
            return
        for name, table in tables.items():
            part = table.set_index("event_no")
            self._publish(part, f"merged/{name}/{name}_{self.n_files}.parquet")
        self.n_files += 1

    def _insert(self, tables: Frames) -> None:
        if self._database is None:
            self._database = sqlite3.connect(self._scratch / "merged.db")
            for name, table in tables.items():
                self._database.execute(f"CREATE TABLE {name} ({_declared(name, table)})")
        for name, table in tables.items():
            places = ", ".join("?" * len(table.columns))
            self._database.executemany(f"INSERT INTO {name} VALUES ({places})", _rows(table))
        self._database.commit()

    def _photons(self, events: Any, event_no: np.ndarray) -> pd.DataFrame:
        rows = self._detector.sensor_idx(events.sensor_id)
        xyz_m = self._detector.xyz_m[rows]
        string = self._detector.string_id if self._string is None else self._string
        return pd.DataFrame(
            {
                **{f"sensor_pos_{axis}": xyz_m[:, k] for k, axis in enumerate("xyz")},
                "sensor_string_id": string[rows],
                "sensor_id": events.sensor_id.astype(np.int64),
                "charge": events.charge_pe,
                "t": events.time_ns.astype(np.float64),
                "event_no": np.repeat(event_no, events.n_pulses),
            }
        )

    def _geometry(self) -> pd.DataFrame:
        detector = self._detector
        xyz = {axis: detector.xyz_m[:, k] for k, axis in enumerate("xyz")}
        string = detector.string_id if self._string is None else self._string
        return pd.DataFrame(
            {
                **{f"sensor_pos_{axis}": values for axis, values in xyz.items()},
                "sensor_string_id": string.astype(np.float64),
                "sensor_id": detector.sensor_id,
                "t": 0,
                **xyz,
                "medium": detector.medium.name,
            }
        )

    def _publish(self, frame: pd.DataFrame, name: str) -> None:
        path = self._scratch / "table.parquet"
        frame.to_parquet(path, index=frame.index.name is not None)
        self._store.upload(path, self._uri(name))

    def _uri(self, name: str) -> str:
        return f"{self._out_uri}/{name}"


def _truth(own: pd.DataFrame, event_no: np.ndarray) -> pd.DataFrame:
    interaction = np.where(own["interaction"] == "cc", 1, 2)
    named = {theirs: own[ours] for theirs, ours in _TRUTH.items()}
    return pd.DataFrame({"interaction": interaction, **named, "event_no": event_no})


def _declared(name: str, table: pd.DataFrame) -> str:
    """Declare columns as GraphNeT does; the truth has a row per event."""
    key = " PRIMARY KEY" if name == "mc_truth" else ""
    kinds = {c: "INTEGER" if k.kind in "iu" else "REAL" for c, k in table.dtypes.items()}
    return ", ".join(f"{c} {k}{key if c == 'event_no' else ''}" for c, k in kinds.items())


def _rows(table: pd.DataFrame) -> Iterator[tuple[Any, ...]]:
    """Give rows of plain numbers; SQLite has no NaN but NULL."""
    return zip(*(table[name].tolist() for name in table.columns), strict=True)
