"""DomEvents <-> the bytes of a shard; the same events always give the same bytes."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from blake3 import blake3

from iceaggr.errors import ShardError
from iceaggr.events.cleaning import MAX_CHARGE_PE, MAX_TIME_NS, MIN_CHARGE_PE
from iceaggr.events.dom_events import DomEvents
from iceaggr.events.grouping import falls_within
from iceaggr.events.label_reading import MAX_AZIMUTH, MAX_ZENITH
from iceaggr.events.schema import PULSE_NAMES, PULSE_VALUES

# The shard format: events already grouped by DOM and sorted by time, as nested Arrow lists.
#
# A shard is one Arrow IPC file with one row per event:
#
#     event_id  int64
#     azimuth   double, radians, null when the event has no label
#     zenith    double, radians, null when the event has no label
#     doms      list<struct<sensor_id: int32, pulses: list<struct<
#                   time_ns: int64, charge_pe: double | float, auxiliary: bool>>>>
#
# DOMs are sorted by sensor_id within an event, pulses by time within a DOM (stable: equal times
# keep the order of the raw file). Nothing is rounded: charge keeps the float type of its raw file.
# Which values a pulse has is said in `schema.PULSE_VALUES`.

FORMAT_VERSION = 2
SPLITS = ("train", "validation", "test")


def shard_hash(*pieces: Any) -> str:
    """Hash the bytes of a shard with BLAKE3, as its manifest names them: 64 hex digits.

    Cryptographic like SHA-256, and four times as fast; every reading of a shard hashes it.
    pieces: any contiguous buffers, hashed as if they were one.
    Source: https://github.com/BLAKE3-team/BLAKE3-specs
    """
    hasher = blake3()
    for piece in pieces:
        hasher.update(piece)
    return hasher.hexdigest()


def shard_schema(float_types: Mapping[str, pa.DataType]) -> pa.Schema:
    """Build the schema of a shard.

    float_types: of the pulse values that keep the float type of their raw file, by name.
    """
    pulse = pa.struct(
        [
            pa.field(value.name, value.stored or float_types[value.name], nullable=False)
            for value in PULSE_VALUES
        ]
    )
    dom = pa.struct(
        [
            pa.field("sensor_id", pa.int32(), nullable=False),
            pa.field("pulses", pa.list_(pa.field("item", pulse, nullable=False)), nullable=False),
        ]
    )
    return pa.schema(
        [
            pa.field("event_id", pa.int64(), nullable=False),
            pa.field("azimuth", pa.float64()),
            pa.field("zenith", pa.float64()),
            pa.field("doms", pa.list_(pa.field("item", dom, nullable=False)), nullable=False),
        ],
        metadata={b"iceaggr_shard_version": str(FORMAT_VERSION).encode()},
    )


MAX_PULSES_PER_SHARD = 8_000_000
"""A shard is closed before it exceeds this, whatever its events; a longer event is alone in one."""


def encode_shard(events: DomEvents) -> bytes:
    """Write events as one Arrow IPC file with one record batch, uncompressed.

    Uncompressed, because a reader then maps the columns without a copy; see docs/benchmarks.md.
    """
    return b"".join(shard_pieces(events))


def shard_pieces(events: DomEvents) -> list[memoryview]:
    """Give the bytes of `encode_shard` in pieces; times and charges are views of the events."""
    batch = _record_batch(events)
    file = _Pieces()
    with pa.PythonFile(file, mode="w") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return file.written


class _Pieces(io.RawIOBase):
    """A file that keeps what is written to it: columns as views of their memory, not copied."""

    def __init__(self) -> None:
        self.written: list[memoryview] = []

    def writable(self) -> bool:
        return True

    def write(self, piece: Any) -> int:
        self.written.append(memoryview(piece).cast("B"))
        return len(piece)


def _record_batch(events: DomEvents) -> Any:
    float_types = {
        value.name: pa.from_numpy_dtype(events.pulse_dtype(value.name))
        for value in PULSE_VALUES
        if value.stored is None
    }
    schema = shard_schema(float_types)
    doms_type = schema.field("doms").type
    dom_type = doms_type.value_type
    pulses_type = dom_type.field("pulses").type
    pulse_type = pulses_type.value_type
    values = [_plain(field.type, getattr(events, field.name)) for field in pulse_type]
    pulses = _struct(pulse_type, values, events.n_pulses)
    pulse_lists = _lists(pulses_type, events.dom_pulse_offsets, pulses)
    doms = _struct(dom_type, [_plain(pa.int32(), events.sensor_id), pulse_lists], events.n_doms)
    columns = [
        _plain(pa.int64(), events.event_id),
        pa.array(events.azimuth, mask=np.isnan(events.azimuth)),
        pa.array(events.zenith, mask=np.isnan(events.zenith)),
        _lists(doms_type, events.event_dom_offsets, doms),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def decode_shard(data: Any, where: str) -> DomEvents:
    """Read a shard; times and charges are views into the bytes, nothing is copied.

    data: any buffer, such as bytes or a memory map.
    Raises: ShardError naming the shard if it is not one, or of another format version.
    """
    try:
        with pa.ipc.open_file(pa.py_buffer(data)) as file:
            found = file.schema
            table = file.read_all()
            _check_schema(found, where)
            # Arrow trusts the lengths in a file: without this, damaged ones read foreign memory
            table.validate()
            table = table.combine_chunks()
            table.validate()
    except (pa.ArrowException, OSError, UnicodeDecodeError, RuntimeError) as error:
        raise _damaged(where, str(error).splitlines()[0], "an Arrow IPC file") from None
    doms = _only_chunk(table, "doms")
    dom_rows = doms.values
    pulse_lists = dom_rows.field("pulses")
    pulses = pulse_lists.values
    _refuse_nulls([_only_chunk(table, "event_id"), doms, dom_rows, pulse_lists, pulses], where)
    events = DomEvents(
        event_id=_numpy(_only_chunk(table, "event_id")),
        azimuth=_numpy(_only_chunk(table, "azimuth")),
        zenith=_numpy(_only_chunk(table, "zenith")),
        event_dom_offsets=_numpy(doms.offsets).astype(np.int64),
        sensor_id=_numpy(dom_rows.field("sensor_id")),
        dom_pulse_offsets=_numpy(pulse_lists.offsets).astype(np.int64),
        **{name: _numpy(pulses.field(name)) for name in PULSE_NAMES},
    )
    _check_offsets(events, where)
    _check_values(events, where)
    return events


def _float_types(schema: Any) -> dict[str, Any]:
    """Find the types of the pulse values that keep the float type of their raw file."""
    pulse = schema.field("doms").type.value_type.field("pulses").type.value_type
    return {value.name: pulse.field(value.name).type for value in PULSE_VALUES if not value.stored}


def _check_schema(found: Any, where: str) -> None:
    try:
        expected = shard_schema(_float_types(found))
    except (KeyError, AttributeError, TypeError, ValueError):
        expected = shard_schema(dict.fromkeys(PULSE_NAMES, pa.float32()))
    are_floats = set(_float_types(expected).values()) <= {pa.float32(), pa.float64()}
    if not (are_floats and found.equals(expected, check_metadata=False)):
        raise _damaged(where, f"schema {' '.join(str(found).split())}", "the shard schema")
    version_key = b"iceaggr_shard_version"
    version = (found.metadata or {}).get(version_key)
    if version != expected.metadata[version_key]:
        raise _damaged(where, f"format {version}", f"format {expected.metadata[version_key]}")


def _check_offsets(events: DomEvents, where: str) -> None:
    for offsets, n_rows in (
        (events.event_dom_offsets, events.n_doms),
        (events.dom_pulse_offsets, events.n_pulses),
    ):
        if offsets[0] != 0 or offsets[-1] != n_rows or (np.diff(offsets) < 1).any():
            raise _damaged(where, "list offsets out of order", "events with DOMs, DOMs with pulses")


def _refuse_nulls(columns: list[Any], where: str) -> None:
    """Refuse a missing value where the format has none; labels alone may be missing."""
    structs = [column for column in columns if pa.types.is_struct(column.type)]
    for column in [*columns, *(s.field(i) for s in structs for i in range(s.type.num_fields))]:
        if column.null_count:
            raise _damaged(where, f"{column.null_count} nulls of type {column.type}", "none")


def _check_values(events: DomEvents, where: str) -> None:
    """Refuse values that sharding never writes: the hash says that a shard is ours, not this."""
    limits = {
        "time_ns": (0, MAX_TIME_NS),
        "charge_pe": (MIN_CHARGE_PE, MAX_CHARGE_PE),
        "azimuth": (0, MAX_AZIMUTH),
        "zenith": (0, MAX_ZENITH),
    }
    for name, (low, high) in limits.items():
        values = getattr(events, name)
        least, greatest = values.min(initial=high), values.max(initial=low)
        if name in ("azimuth", "zenith"):  # NaN: no label
            least, greatest = np.nanmin(values, initial=high), np.nanmax(values, initial=low)
        if not (least >= low and greatest <= high):
            event_id = _first_outside(events, values, low, high)
            raise _damaged(
                f"{where}, event_id {event_id}",
                f"{name} {least} to {greatest}",
                f"{name} {low:g} to {high:g}",
            )
    time, sensor = events.time_ns, events.sensor_id
    if falls_within(time[1:] < time[:-1], events.dom_pulse_offsets[1:-1]):
        raise _damaged(where, "pulses out of order", "pulses of a DOM sorted by time")
    if falls_within(sensor[1:] <= sensor[:-1], events.event_dom_offsets[1:-1]):
        raise _damaged(where, "DOMs out of order", "DOMs of an event sorted by sensor_id")
    if len(np.unique(events.event_id)) != events.n_events:
        raise _damaged(where, "event_id twice", "each event once")


def _first_outside(
    events: DomEvents, values: npt.NDArray[np.number[Any]], low: float, high: float
) -> int:
    """Find the event of the first value that is not within the limits."""
    inside = (values >= low) & (values <= high)
    if values is events.azimuth or values is events.zenith:
        return int(events.event_id[np.argmin(inside | np.isnan(values))])
    row = int(np.searchsorted(events.event_pulse_offsets(), np.argmin(inside), side="right")) - 1
    return int(events.event_id[row])


def _damaged(where: str, found: str, expected: str) -> ShardError:
    return ShardError(
        "damaged shard",
        where=where,
        found=found,
        expected=expected,
        remedy="Delete its folder and run sharding again; it rewrites what is missing",
    )


def _only_chunk(table: Any, name: str) -> Any:
    column = table.column(name)
    return column.chunk(0) if column.num_chunks else pa.array([], column.type)


def _plain(arrow_type: Any, values: npt.NDArray[Any]) -> Any:
    # straight from the memory of numpy: no copy, and no search for nulls
    packed = values.dtype == np.bool_
    buffer = pa.py_buffer(
        np.packbits(values, bitorder="little") if packed else np.ascontiguousarray(values)
    )
    return pa.Array.from_buffers(arrow_type, len(values), [None, buffer])


def _struct(arrow_type: Any, children: list[Any], n_rows: int) -> Any:
    return pa.Array.from_buffers(arrow_type, n_rows, [None], children=children)


def _lists(arrow_type: Any, offsets: npt.NDArray[np.int64], values: Any) -> Any:
    # 32 bits are enough: MAX_PULSES_PER_SHARD
    buffers = [None, pa.py_buffer(offsets.astype(np.int32))]
    return pa.Array.from_buffers(arrow_type, len(offsets) - 1, buffers, children=[values])


def _numpy(column: Any) -> npt.NDArray[Any]:
    if not (pa.types.is_boolean(column.type) and len(column)):
        return column.to_numpy(zero_copy_only=False)
    # several times as fast as Arrow
    packed = np.frombuffer(column.buffers()[1], np.uint8)
    bits = np.unpackbits(packed, count=column.offset + len(column), bitorder="little")
    return bits[column.offset :].view(np.bool_)
