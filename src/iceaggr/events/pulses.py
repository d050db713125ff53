"""Streaming a batch file: bounded chunks of whole events, in file order."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from iceaggr.errors import RawDataError
from iceaggr.events.dom_events import PulseArrays
from iceaggr.events.meta import EventTable
from iceaggr.events.schema import (
    FLAG,
    IDENTITY,
    NUMBER,
    PULSE_COLUMNS,
    PULSE_VALUES,
    Kind,
    check_columns,
    exact_integers,
    open_parquet,
)
from iceaggr.interfaces import ObjectStore

# Pulses from the columns of a batch file: kinds checked, nothing rounded, nulls marked.


@dataclass(frozen=True)
class Pulses(PulseArrays):
    """Pulses as they lie in a batch file.

    event_id:   (N,) int64
    sensor_id:  (N,) any integer type
    is_missing: (N,) bool, a value of the pulse is null or its time is not a number
    """

    event_id: npt.NDArray[np.int64]
    sensor_id: npt.NDArray[np.integer]
    is_missing: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        """Count the pulses (N)."""
        return len(self.time_ns)

    def take(self, rows: Any) -> Pulses:
        """Take some pulses: a slice, a mask (N,) bool or row numbers."""
        return Pulses(*(getattr(self, field.name)[rows] for field in fields(self)))


_IDS = tuple(name for name, kind in PULSE_COLUMNS.items() if kind is IDENTITY)


def decode_pulses(rows: pa.Table, where: str) -> Pulses:
    """Take the pulses of an Arrow table with the columns of a batch file, rows in any order.

    Raises: RawDataError if a column is missing or of the wrong type.
    """
    check_columns(rows.schema, PULSE_COLUMNS, where)
    rows = rows.select(list(PULSE_COLUMNS))
    for name in _IDS:
        column = exact_integers(rows.column(name), name, where, tell_row=True)
        rows = rows.set_column(rows.column_names.index(name), name, column)
    return decode_checked(rows, where)


def decode_checked(rows: Any, uri: str) -> Pulses:
    """Take the pulses of a table whose columns `check_columns` has seen. Raises: RawDataError."""
    rows.validate()  # a damaged file may give columns of different lengths
    columns = {name: _contiguous(rows.column(name)) for name in PULSE_COLUMNS}
    for name in _IDS:
        columns[name] = exact_integers(columns[name], name, uri)
    is_missing = np.zeros(rows.num_rows, np.bool_)
    for name, column in columns.items():
        if column.null_count and name == "event_id":
            raise RawDataError(
                "raw column event_id has missing values",
                where=uri,
                found=f"{column.null_count} nulls",
                expected="none",
                remedy="Every pulse belongs to one event: write the batch file anew",
            )
        if column.null_count:
            is_missing |= column.is_null().to_numpy(zero_copy_only=False)
            columns[name] = pc.fill_null(column, _nothing(column.type))
    values = {}
    for value in PULSE_VALUES:
        column = columns[value.raw_name]
        values[value.name], not_a_number = _value(column, value.kind, value.raw_name, uri)
        if not_a_number is not None:
            is_missing |= not_a_number
    return Pulses(
        event_id=_event_id(columns["event_id"], uri),
        sensor_id=_numpy(columns["sensor_id"]),
        is_missing=is_missing,
        **values,
    )


def _value(
    column: Any, kind: Kind, name: str, uri: str
) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_] | None]:
    """Read one value of every pulse, and mark those that are no number."""
    if kind == FLAG:
        return _flag(column, name, uri), None
    if kind == NUMBER:
        return _number(column), None
    return _whole(column, name, uri)


def _nothing(kind: Any) -> Any:
    """Give a stand-in for null; Arrow makes no flag of the number 0."""
    return pa.scalar(False if pa.types.is_boolean(kind) else 0, kind)


def _contiguous(column: Any) -> Any:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _numpy(column: Any) -> npt.NDArray[Any]:
    return column.to_numpy(zero_copy_only=False)


def _event_id(column: Any, uri: str) -> npt.NDArray[np.int64]:
    try:
        return _numpy(column.cast(pa.int64()))
    except pa.ArrowInvalid as error:
        raise RawDataError(
            "raw column event_id exceeds 64-bit signed integers",
            where=uri,
            found=str(error),
            expected="at most 2^63 - 1",
            remedy="Write event_id as int64",
        ) from None


def _number(column: Any) -> npt.NDArray[np.floating]:
    number = _numpy(column)
    if number.dtype in (np.float32, np.float64):
        return number
    # float16 fits float32, and integers up to 2^53 fit float64: nothing is rounded
    return number.astype(np.float32 if number.dtype == np.float16 else np.float64)


def _flag(column: Any, name: str, uri: str) -> npt.NDArray[np.bool_]:
    if pa.types.is_boolean(column.type):
        return _unpacked(column)
    flag = _numpy(column)
    if len(flag) and (flag.min() < 0 or flag.max() > 1):
        raise RawDataError(
            f"raw column {name} is not a flag",
            where=uri,
            found=f"values from {flag.min()} to {flag.max()}",
            expected="0 and 1 only",
            remedy="Write it as boolean: True = not part of the trigger decision",
        )
    return flag.astype(np.bool_)


def _unpacked(column: Any) -> npt.NDArray[np.bool_]:
    if not len(column):
        return np.zeros(0, np.bool_)
    packed = np.frombuffer(column.buffers()[1], np.uint8)[column.offset // 8 :]
    shift = column.offset % 8
    bits = np.unpackbits(packed, count=shift + len(column), bitorder="little")
    return bits[shift:].view(np.bool_)


def _whole(
    column: Any, name: str, uri: str
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_] | None]:
    number = _numpy(column)
    if number.dtype == np.uint64:
        return np.minimum(number, np.uint64(2**62)).astype(np.int64), None
    if number.dtype.kind in "iu":
        return number.astype(np.int64, copy=False), None
    finite = np.isfinite(number)
    whole = np.where(finite, number, 0).astype(np.float64).clip(-(2.0**62), 2.0**62)
    fraction = np.flatnonzero(whole != np.floor(whole))
    if len(fraction):
        raise RawDataError(
            f"raw column {name} is not in whole nanoseconds",
            where=uri,
            found=f"{name} {whole[fraction[0]]}",
            expected="integers, or floats without a fraction",
            remedy="Choose the rounding yourself when writing the raw file: none is done here",
        )
    return whole.astype(np.int64), ~finite


PULSES_PER_READ = 1 << 18
"""Rows decoded at a time: the working set stays near the caches, and memory bounded."""


@dataclass(frozen=True)
class PulseChunk:
    """Consecutive whole events: rows [first_event, stop_event) of the event table."""

    first_event: int
    stop_event: int
    first_pulse: int
    pulses: Pulses


def stream_pulses(
    store: ObjectStore, uri: str, n_rows: int, table: EventTable
) -> Iterator[PulseChunk]:
    """Read a batch file in chunks of about PULSES_PER_READ pulses, cut between events.

    n_rows: pulses that the meta file gives this batch file; table: its events, or the first ones.
    Raises: RawDataError if the file is damaged or does not fit its meta rows.
    """
    ends = np.cumsum(table.n_pulses)
    with open_parquet(store, uri) as file, closing(_read_ahead(file, uri)) as portions:
        check_columns(file.schema_arrow, PULSE_COLUMNS, uri)
        _check_length(file.n_rows, n_rows, uri)
        done = 0
        for chunk in _whole_events(portions, ends):
            _check_event_ids(chunk, table, uri)
            yield chunk
            done = chunk.stop_event
        if done < table.n_events:  # only events without any pulse, in a file without rows
            first_pulse = int(ends[done - 1]) if done else 0
            nothing = decode_checked(file.schema_arrow.empty_table(), uri)
            _check_length(first_pulse, int(ends[-1]), uri)
            yield PulseChunk(done, table.n_events, first_pulse, nothing)


def _whole_events(portions: Iterator[Pulses], ends: npt.NDArray[np.int64]) -> Iterator[PulseChunk]:
    """Cut portions between events; only the event that spans portions is copied, to join it.

    ends: (B,) int64, pulses up to the end of each event.
    """
    done, n_before = 0, 0
    begun: list[Pulses] = []  # the start of an event that no portion has ended yet
    for portion in portions:
        n_read = n_before + len(portion)
        stop = int(np.searchsorted(ends, n_read, side="right"))
        if stop == done:
            begun.append(portion)
            n_before = n_read
            continue
        if begun:
            end = int(ends[done])
            after = int(np.searchsorted(ends, end, side="right"))
            spanning = _join([*begun, portion.take(slice(0, end - n_before))])
            yield PulseChunk(done, after, end - len(spanning), spanning)
            done, portion, n_before = after, portion.take(slice(end - n_before, None)), end
        n_complete = int(ends[stop - 1]) - n_before
        if stop > done:
            yield PulseChunk(done, stop, n_before, portion.take(slice(0, n_complete)))
        if stop == len(ends):
            return
        rest = portion.take(slice(n_complete, None))
        begun = [rest] if len(rest) else []
        done, n_before = stop, n_read


def _read_ahead(file: Any, uri: str) -> Generator[Pulses]:
    """Decode the next portion in a thread while the caller works on this one."""
    batches = file.iter_batches(PULSES_PER_READ, columns=list(PULSE_COLUMNS))
    decoded = (decode_checked(rows, uri) for rows in batches)
    with ThreadPoolExecutor(1, thread_name_prefix="pulse-reader") as thread:
        upcoming = thread.submit(next, decoded, None)
        while (portion := upcoming.result()) is not None:
            upcoming = thread.submit(next, decoded, None)
            yield portion


def _check_length(found: int, expected: int, uri: str) -> None:
    if found == expected:
        return
    beyond = "the meta file points outside it" if found < expected else "pulses belong to no event"
    raise RawDataError(
        f"raw file and meta file disagree: {beyond}",
        where=uri,
        found=f"{found} pulses",
        expected=f"{expected} pulses (greatest last_pulse_index + 1)",
        remedy="Copy the file again, or use the meta file that was written with it",
    )


def _check_event_ids(chunk: PulseChunk, table: EventTable, uri: str) -> None:
    events = slice(chunk.first_event, chunk.stop_event)
    expected = np.repeat(table.event_id[events], table.n_pulses[events])
    if np.array_equal(chunk.pulses.event_id, expected):
        return
    row = int(np.flatnonzero(chunk.pulses.event_id != expected)[0])
    raise RawDataError(
        "event_id of the raw file and of the meta file disagree",
        where=f"{uri} pulse {chunk.first_pulse + row}",
        found=f"event_id {chunk.pulses.event_id[row]}",
        expected=f"event_id {expected[row]} as in the meta file",
        remedy="Use the meta file that was written with this batch file",
    )


def _join(parts: list[Pulses]) -> Pulses:
    names = [field.name for field in fields(Pulses)]
    return Pulses(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))
