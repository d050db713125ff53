"""The statistics in a parquet footer, read without Arrow.

Arrow's own classes for them end the whole process when a damaged footer contradicts itself: the
C++ exception finds nobody to catch it. Data read through Arrow are not concerned.
Source: parquet-format, parquet.thrift (field numbers); Apache Thrift, compact protocol.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from iceaggr.errors import IceaggrError
from iceaggr.events.schema import damaged_file
from iceaggr.interfaces import ObjectStore

_TAIL = 8
_MAGIC = b"PAR1"
_WIDTHS = {1: 4, 2: 8}
"""Bytes of the two physical types of integers: INT32, INT64."""
_MAX_DEPTH = 32

Bounds = tuple[int, int] | None


@dataclass(frozen=True)
class RowGroup:
    """One row group.

    index: its place in the file.  n_rows: its rows
    bounds: least and greatest value of each signed integer column, None where it is not known
    """

    index: int
    n_rows: int
    bounds: dict[str, Bounds]


def read_row_groups(store: ObjectStore, uri: str) -> list[RowGroup]:
    """Read what the footer says of each row group.

    Raises: StorageError; DamagedFileError if the footer cannot be read.
    """
    try:
        footer, _ = _Compact(_footer(store, uri)).struct()
        return [_row_group(index, group) for index, group in enumerate(footer[4])]
    except IceaggrError:
        raise
    except (LookupError, ValueError, TypeError, AttributeError, OverflowError) as error:
        raise damaged_file(uri, f"footer: {type(error).__name__} {error}") from error


def _footer(store: ObjectStore, uri: str) -> bytes:
    with closing(store.open_input(uri)) as stream:
        size = stream.seek(0, 2)
        stream.seek(max(0, size - _TAIL))
        tail = stream.read(_TAIL)
        length = int.from_bytes(tail[:4], "little")
        if tail[4:] != _MAGIC or length > size - _TAIL:
            raise ValueError(f"ends in {tail!r}")
        stream.seek(size - _TAIL - length)
        return stream.read(length)


def _row_group(index: int, group: dict[int, Any]) -> RowGroup:
    bounds = {}
    for chunk in group[1]:
        column = chunk[3]
        path = [part.decode() for part in column[3]]
        bounds[".".join(path)] = _bounds(column)
    n_rows = group[3]
    if not isinstance(n_rows, int) or n_rows < 0:
        raise ValueError(f"{n_rows} rows")
    return RowGroup(index, n_rows, bounds)


def _bounds(column: dict[int, Any]) -> Bounds:
    """Decode min_value and max_value; without a count of nulls there may be some."""
    width, statistics = _WIDTHS.get(column[1]), column.get(12, {})
    least, greatest = statistics.get(6), statistics.get(5)
    if width is None or statistics.get(3) != 0 or least is None or greatest is None:
        return None
    if len(least) != width or len(greatest) != width:
        return None
    low, high = (int.from_bytes(value, "little", signed=True) for value in (least, greatest))
    return (low, high) if low <= high else None


class _Compact:
    """A reader of Thrift's compact protocol: a struct becomes {field number: value}."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def struct(self, depth: int = 0) -> tuple[dict[int, Any], int]:
        """Read fields up to the stop byte; gives them and where they ended."""
        fields: dict[int, Any] = {}
        number = 0
        for kind, step in self._headers():
            number = number + step if step else self._zigzag()
            fields[number] = kind == 1 if kind in (1, 2) else self._value(kind, depth)
        return fields, self.at

    def _headers(self) -> Iterator[tuple[int, int]]:
        while header := self._byte():
            yield header & 15, header >> 4

    def _value(self, kind: int, depth: int) -> Any:
        if depth > _MAX_DEPTH:
            raise ValueError("nested too deep")
        if kind in (1, 2, 3):
            return self._byte()
        if kind in (4, 5, 6):
            return self._zigzag()
        if kind in (7, 8):
            return self._bytes(8 if kind == 7 else self._varint())
        if kind in (9, 10):
            return self._list(depth)
        if kind == 12:
            return self.struct(depth + 1)[0]
        raise ValueError(f"type {kind}")  # parquet has neither maps nor uuids

    def _list(self, depth: int) -> list[Any]:
        header = self._byte()
        size = header >> 4
        if size == 15:
            size = self._varint()
        if size > len(self.data):
            raise ValueError(f"list of {size}")
        return [self._value(header & 15, depth + 1) for _ in range(size)]

    def _byte(self) -> int:
        self.at += 1
        return self.data[self.at - 1]

    def _bytes(self, size: int) -> bytes:
        self.at += size
        if self.at > len(self.data):
            raise ValueError("cut off")
        return self.data[self.at - size : self.at]

    def _varint(self) -> int:
        value = shift = 0
        while (byte := self._byte()) & 128:
            value |= (byte & 127) << shift
            shift += 7
            if shift > 63:
                raise ValueError("number too long")
        return value | byte << shift

    def _zigzag(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)
