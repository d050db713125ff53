"""Foreign sources of events, converted once into the raw layout. Foreign names live only here.

A source often lacks what IceCube records. The conversion never makes that up on its own: it
refuses, names what is missing, and goes on only if the caller accepts each stand-in by name. What
was accepted is written beside the events and shown in every manifest made from them.
"""

from __future__ import annotations

import io
import json
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from iceaggr.errors import RawDataError
from iceaggr.events.layout import NOTES_FILE
from iceaggr.interfaces import ObjectStore

STAND_INS = {
    "charge": "charge: absent in the source, every pulse is a single photon of 1 p.e.",
    "auxiliary": "auxiliary: absent in the source, every pulse counts as part of the trigger",
}


@dataclass(frozen=True)
class GraphnetSqlite:
    """How a SQLite file in GraphNeT's layout is read: one table of pulses, one of truth.

    accept_missing: columns among charge and auxiliary that may be absent (see STAND_INS).
    label_points_to: where the truth's direction points; the raw layout wants the origin.
    n_events_per_file: events in one batch file.
    """

    pulse_table: str = "total"
    truth_table: str = "mc_truth"
    event_column: str = "event_no"
    time_column: str = "t"
    azimuth_column: str = "injection_azimuth"
    zenith_column: str = "injection_zenith"
    accept_missing: tuple[str, ...] = ()
    label_points_to: Literal["origin", "destination"] = "origin"
    n_events_per_file: int = 20_000


_POSITION = {"sensor_pos_x": "x", "sensor_pos_y": "y", "sensor_pos_z": "z"}


def convert_graphnet_sqlite(
    store: ObjectStore, database: Path, out_uri: str, source: GraphnetSqlite | None = None
) -> tuple[str, ...]:
    """Write the events of a SQLite file as batch files, meta file, geometry and notes.

    Returns the notes: what the source does not have, and what was rounded.
    Raises: RawDataError if the file is not such a database, something is missing that was not
    accepted, or a sensor stands at two places; StorageError.
    """
    source = source or GraphnetSqlite()
    out_uri = out_uri.rstrip("/")
    where = str(database)
    pulses, truth = _read(database, source)
    _refuse_missing(pulses, source, where)
    geometry = _geometry(pulses, where)
    truth = truth.sort_values(source.event_column, kind="stable", ignore_index=True)
    notes = _notes(pulses, geometry, source)
    raw = _raw_pulses(pulses, source)
    _refuse_strangers(raw, truth[source.event_column], where)
    metas = []
    for number, start in enumerate(range(0, len(truth), source.n_events_per_file), start=1):
        events = truth.iloc[start : start + source.n_events_per_file]
        ids = events[source.event_column].to_numpy(np.int64)
        part = raw[raw["event_id"].isin(ids)]
        metas.append(_meta(part, events, number, source))
        _write(store, f"{out_uri}/train/batch_{number}.parquet", part)
    _write(store, f"{out_uri}/train_meta.parquet", pd.concat(metas, ignore_index=True))
    store.write_bytes(f"{out_uri}/sensor_geometry.csv", geometry.to_csv(index=False).encode())
    store.write_bytes(f"{out_uri}/{NOTES_FILE}", json.dumps(notes, indent=1).encode())
    return notes


def _read(database: Path, source: GraphnetSqlite) -> tuple[pd.DataFrame, pd.DataFrame]:
    uri = f"{database.absolute().as_uri()}?mode=ro"
    try:
        with closing(sqlite3.connect(uri, uri=True)) as connection:
            tables = [
                pd.read_sql(f'SELECT * FROM "{name}"', connection)
                for name in (source.pulse_table, source.truth_table)
            ]
    except (sqlite3.Error, pd.errors.DatabaseError) as error:
        raise RawDataError(
            "cannot read the SQLite source",
            where=str(database),
            found=str(error).splitlines()[0],
            expected=f"tables {source.pulse_table} and {source.truth_table}",
            remedy="Check the path and the table names",
        ) from None
    needed = (
        [source.event_column, source.time_column, "sensor_id", *_POSITION],
        [source.event_column, source.azimuth_column, source.zenith_column],
    )
    for table, columns in zip(tables, needed, strict=True):
        absent = [name for name in columns if name not in table]
        if absent:
            raise RawDataError(
                f"SQLite source lacks columns {', '.join(absent)}",
                where=str(database),
                found=", ".join(table.columns),
                expected="these columns",
                remedy="Name its columns in GraphnetSqlite",
            )
    return tables[0], tables[1]


def _refuse_missing(pulses: pd.DataFrame, source: GraphnetSqlite, where: str) -> None:
    missing = [name for name in STAND_INS if name not in pulses]
    refused = [name for name in missing if name not in source.accept_missing]
    if refused:
        raise RawDataError(
            f"source has no {' and no '.join(refused)}",
            where=where,
            found=f"columns {', '.join(pulses.columns)}",
            expected="charge and auxiliary for every pulse",
            remedy=f"Accept the stand-in explicitly: accept_missing={tuple(missing)}",
        )


def _geometry(pulses: pd.DataFrame, where: str) -> pd.DataFrame:
    columns = ["sensor_id", *_POSITION]
    columns += ["sensor_string_id"] if "sensor_string_id" in pulses else []
    table = pulses[columns].drop_duplicates().sort_values("sensor_id")
    twice = table["sensor_id"][table["sensor_id"].duplicated()]
    if len(twice):
        raise RawDataError(
            "sensor stands at two places",
            where=where,
            found=f"sensor_id {twice.iloc[0]}",
            expected="one position per sensor_id",
            remedy="Correct the positions in the source; nothing is averaged here",
        )
    return table.rename(columns=_POSITION | {"sensor_string_id": "string"})


def _notes(pulses: pd.DataFrame, geometry: pd.DataFrame, source: GraphnetSqlite) -> tuple[str, ...]:
    notes = [sentence for name, sentence in STAND_INS.items() if name not in pulses]
    time = pulses[source.time_column].to_numpy(np.float64)
    if (time != np.round(time)).any():
        notes.append("time: rounded to whole ns")
    notes.append(f"geometry: only the {len(geometry)} sensors that recorded a pulse are known")
    notes.append(
        f"label: {source.azimuth_column}, {source.zenith_column}, "
        f"taken to point to the {source.label_points_to}"
    )
    return tuple(notes)


def _raw_pulses(pulses: pd.DataFrame, source: GraphnetSqlite) -> pd.DataFrame:
    n_pulses = len(pulses)
    raw = pd.DataFrame(
        {
            "event_id": pulses[source.event_column].to_numpy(np.int64),
            "sensor_id": pulses["sensor_id"].to_numpy(np.int64),
            "time": np.round(pulses[source.time_column].to_numpy(np.float64)).astype(np.int64),
            "charge": pulses["charge"] if "charge" in pulses else np.ones(n_pulses, np.float32),
            "auxiliary": pulses["auxiliary"].astype(bool)
            if "auxiliary" in pulses
            else np.zeros(n_pulses, bool),
        }
    )
    return raw.sort_values(["event_id", "time"], kind="stable", ignore_index=True)


def _refuse_strangers(raw: pd.DataFrame, known: pd.Series, where: str) -> None:
    strangers = raw["event_id"][~raw["event_id"].isin(known)].unique()
    if len(strangers):
        raise RawDataError(
            "pulses of events without truth",
            where=where,
            found=f"{len(strangers)} events, such as {strangers[0]}",
            expected="one row of truth per event",
            remedy="Add their truth, or remove their pulses",
        )


def _meta(
    raw: pd.DataFrame, events: pd.DataFrame, batch_id: int, source: GraphnetSqlite
) -> pd.DataFrame:
    ids = events[source.event_column].to_numpy(np.int64)
    counts = raw.groupby("event_id").size().reindex(ids, fill_value=0).to_numpy()
    last = np.cumsum(counts) - 1
    azimuth = events[source.azimuth_column].to_numpy(np.float64)
    zenith = events[source.zenith_column].to_numpy(np.float64)
    if source.label_points_to == "destination":
        azimuth, zenith = azimuth + np.pi, np.pi - zenith
    return pd.DataFrame(
        {
            "batch_id": np.full(len(ids), batch_id),
            "event_id": ids,
            "first_pulse_index": last - counts + 1,
            "last_pulse_index": last,
            "azimuth": np.mod(azimuth, 2 * np.pi),
            "zenith": zenith,
        }
    )


def _write(store: ObjectStore, uri: str, table: pd.DataFrame) -> None:
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False, write_page_checksum=True)
    store.write_bytes(uri, buffer.getvalue())
