"""The quarantine of a raw file: every rejected pulse and event with its reason, as parquet."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from iceaggr.events.cleaning import EVENT_REASONS, PULSE_REASONS, CleanChunk
from iceaggr.events.meta import EventTable
from iceaggr.events.pulses import PulseChunk
from iceaggr.events.schema import PULSE_VALUES, open_parquet, reading_again
from iceaggr.interfaces import ObjectStore

SCHEMA = pa.schema(
    [
        pa.field("event_id", pa.int64(), nullable=False),
        pa.field("event_reason", pa.string()),
        pa.field("pulse_index", pa.int64()),
        pa.field("pulse_reason", pa.string()),
        pa.field("sensor_id", pa.int64()),
        *(pa.field(value.raw_name, value.stored or pa.float64()) for value in PULSE_VALUES),
        pa.field("azimuth", pa.float64()),
        pa.field("zenith", pa.float64()),
    ]
)
"""One row per rejected pulse; a rejected event without pulses has one row without pulse columns.
The label is the event's, as it was read: radians. Quarantines of before have none."""
MAX_LABELS_READ = 20_000


class QuarantineFile:
    """Writes rejected rows to a local parquet file, which exists only if there are any."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._writer: Any = None

    def __enter__(self) -> QuarantineFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._writer is not None:
            self._writer.close()

    def add(self, chunk: PulseChunk, cleaned: CleanChunk, table: EventTable) -> None:
        """Write what was rejected from one chunk."""
        if cleaned.pulse_reason is None:
            return
        for rows in (_pulse_rows(chunk, cleaned, table), _event_rows(chunk, cleaned, table)):
            if not rows.num_rows:
                continue
            if self._writer is None:
                self._writer = pq.ParquetWriter(self.path, SCHEMA)
            self._writer.write_table(rows)


@reading_again
def read_labels_out_of_range(store: ObjectStore, uri: str) -> pd.DataFrame:
    """Read the events rejected for their label: event_id, azimuth and zenith as they were read.

    Returns one row per event, the first 20,000 or so; none of a quarantine without labels.
    Raises: RawDataError if the file is damaged; StorageError.
    """
    columns = ["event_id", "azimuth", "zenith"]
    parts = [pd.DataFrame(columns=columns)]
    with open_parquet(store, uri) as file:
        if "azimuth" in file.schema_arrow.names:
            for rows in file.iter_batches(columns=[*columns, "event_reason"]):
                found = rows.filter(pc.equal(rows.column("event_reason"), "label_out_of_range"))
                parts.append(found.select(columns).to_pandas().drop_duplicates("event_id"))
                if sum(map(len, parts)) >= MAX_LABELS_READ:
                    break
    filled = [part for part in parts if len(part)] or parts[:1]
    return pd.concat(filled).drop_duplicates("event_id", ignore_index=True)


def _pulse_rows(chunk: PulseChunk, cleaned: CleanChunk, table: EventTable) -> Any:
    assert cleaned.pulse_reason is not None
    rows = np.flatnonzero(cleaned.pulse_reason >= 0)
    n_pulses = table.n_pulses[chunk.first_event : chunk.stop_event]
    event = np.repeat(np.arange(len(n_pulses)), n_pulses)[rows]
    pulses = chunk.pulses.take(rows)
    return pa.table(
        {
            "event_id": pulses.event_id,
            "event_reason": _names(cleaned.event_reason[event], EVENT_REASONS),
            "pulse_index": chunk.first_pulse + rows,
            "pulse_reason": _names(cleaned.pulse_reason[rows], PULSE_REASONS),
            "sensor_id": pulses.sensor_id.astype(np.int64),
            **{value.raw_name: getattr(pulses, value.name) for value in PULSE_VALUES},
            "azimuth": table.azimuth[chunk.first_event + event],
            "zenith": table.zenith[chunk.first_event + event],
        },
        schema=SCHEMA,
    )


def _event_rows(chunk: PulseChunk, cleaned: CleanChunk, table: EventTable) -> Any:
    n_pulses = table.n_pulses[chunk.first_event : chunk.stop_event]
    rows = np.flatnonzero((cleaned.event_reason >= 0) & (n_pulses == 0))
    columns = {name: pa.nulls(len(rows), SCHEMA.field(name).type) for name in SCHEMA.names}
    columns["event_id"] = pa.array(table.event_id[chunk.first_event + rows])
    columns["event_reason"] = _names(cleaned.event_reason[rows], EVENT_REASONS)
    columns["azimuth"] = pa.array(table.azimuth[chunk.first_event + rows])
    columns["zenith"] = pa.array(table.zenith[chunk.first_event + rows])
    return pa.table(columns, schema=SCHEMA)


def _names(reason: np.ndarray, names: tuple[str, ...]) -> Any:
    return pa.array(np.array([*names, None])[reason], pa.string())  # -1 is the last: none
