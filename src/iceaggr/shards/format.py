"""The shard format: events already grouped by DOM and sorted by time, as nested Arrow lists.

A shard is one Arrow IPC file with one row per event:

    event_id  int64
    azimuth   double, radians, null when the event has no label
    zenith    double, radians, null when the event has no label
    doms      list<struct<sensor_id: int32, pulses: list<struct<
                  time_ns: int64, charge_pe: double | float, auxiliary: bool>>>>

DOMs are sorted by sensor_id within an event, pulses by time within a DOM (stable: equal times keep
the order of the raw file). Nothing is rounded: charge keeps the float type of its raw file. Which
values a pulse has is said in `schema.PULSE_VALUES`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
from blake3 import blake3

from iceaggr.events.schema import PULSE_VALUES

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
