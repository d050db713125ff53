"""Raw events from storage as DomEvents, in bounded chunks; and back to raw columns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
import pandas as pd

from iceaggr.detector import Detector
from iceaggr.errors import DetectorError, RawDataError
from iceaggr.events.cleaning import Account, clean
from iceaggr.events.dom_events import DomEvents
from iceaggr.events.grouping import group_by_dom
from iceaggr.events.label_reading import AS_DOCUMENTED, LabelReading
from iceaggr.events.layout import RawFile, RawLayout, find_layout, geometry_of, load_detector
from iceaggr.events.meta import EventTable, read_event_tables
from iceaggr.events.pulses import stream_pulses
from iceaggr.events.schema import PULSE_VALUES
from iceaggr.interfaces import ObjectStore


def read_raw_events(
    store: ObjectStore,
    raw_uri: str,
    folder: Literal["auto", "train", "test"] = "auto",
    detector: Detector | None = None,
    account: Account | None = None,
) -> Iterator[DomEvents]:
    """Read raw events in file order, without splitting or storing them, for prediction.

    folder: as in `find_layout`: auto takes the unlabelled test/ where there is one.
    detector: the sensor table to judge pulses by; None loads that of the layout.
    account: filled while reading with what was kept and rejected. Labels are passed on where there
    are any, but an event is not rejected for its label.
    Raises: RawDataError, DetectorError, StorageError.
    """
    layout = find_layout(store, raw_uri, folder)
    detector = detector or load_detector(store, geometry_of(store, layout))
    check_sensor_width(detector, layout.geometry_uri)
    account = account if account is not None else Account()
    for file in layout.files:
        yield from read_raw_file(store, layout, file, detector, account)


def read_raw_file(
    store: ObjectStore,
    layout: RawLayout,
    file: RawFile,
    detector: Detector,
    account: Account,
    labels: LabelReading | None = None,
) -> Iterator[DomEvents]:
    """Read one file of a layout, as `read_raw_events` does.

    labels: how they are meant, where each event must have one; None asks nothing of them.
    """
    table = event_table_of(store, layout, file, labels or AS_DOCUMENTED)
    n_rows = int(table.n_pulses.sum())
    for chunk in stream_pulses(store, file.stored.uri, n_rows, table):
        cleaned = clean(chunk, table, detector, labels is not None, account)
        if len(cleaned.events):
            yield group_by_dom(cleaned, table, detector)


def event_table_of(
    store: ObjectStore, layout: RawLayout, file: RawFile, labels: LabelReading = AS_DOCUMENTED
) -> EventTable:
    """Read the meta rows of one batch file. Raises: RawDataError if it has none."""
    tables = read_event_tables(store, layout.meta.uri, [file.batch_id], layout.labelled, labels)
    if file.batch_id not in tables:
        raise missing_meta_rows(file.stored.uri, file.batch_id, layout.meta.uri)
    return tables[file.batch_id]


def missing_meta_rows(file_uri: str, batch_id: int, meta_uri: str) -> RawDataError:
    """Word the error of a batch file that the meta file does not know."""
    return RawDataError(
        "raw file has no rows in the meta file",
        where=file_uri,
        found=f"no row with batch_id {batch_id} in {meta_uri}",
        expected="one row per event",
        remedy="Remove the file, or use the meta file that was written with it",
    )


def check_sensor_width(detector: Detector, geometry_uri: str) -> None:
    """Refuse a detector whose ids do not fit the shard format. Raises: DetectorError."""
    limits = np.iinfo(np.int32)
    if detector.sensor_id[0] < limits.min or detector.sensor_id[-1] > limits.max:
        raise DetectorError(
            "sensor_id beyond 32 bits",
            where=geometry_uri,
            found=f"{detector.sensor_id[0]} to {detector.sensor_id[-1]}",
            expected=f"{limits.min} to {limits.max}",
            remedy="Number the sensors with smaller integers",
        )


def raw_columns(events: DomEvents) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Turn events back into the raw layout: pulses of each event by time, then by sensor.

    Returns the pulse table (index event_id; sensor_id, time, charge, auxiliary) and the meta table
    (event_id, first_pulse_index, last_pulse_index inclusive, azimuth, zenith).
    """
    offsets = events.event_pulse_offsets()
    event = np.repeat(np.arange(events.n_events), np.diff(offsets))
    sensor_id = np.repeat(events.sensor_id, np.diff(events.dom_pulse_offsets))
    order = np.lexsort((sensor_id, events.time_ns, event))
    pulses = pd.DataFrame(
        {
            "sensor_id": sensor_id[order],
            **{value.raw_name: getattr(events, value.name)[order] for value in PULSE_VALUES},
        },
        index=pd.Index(events.event_id[event[order]], name="event_id"),
    )
    meta = pd.DataFrame(
        {
            "event_id": events.event_id,
            "first_pulse_index": offsets[:-1],
            "last_pulse_index": offsets[1:] - 1,
            "azimuth": events.azimuth,
            "zenith": events.zenith,
        }
    )
    return pulses, meta
